"""What every sparse coder shares: weights, encoding, decoding, scale.

    pre  = x W_enc^T + b_enc                  pre-activations, [tokens, width]
    z    = select(pre)                        sparse, non-negative, [tokens, width]
    yhat = z W_dec + b_dec (+ x W_skip^T)     [tokens, d_out]

Rows of `W_enc` and `W_dec` are features. A sparse autoencoder explains its own input, y = x; a
transcoder is given other activations to predict, and may have a linear path beside its features.
An architecture says which entries are chosen, what their activations are and what, beside the
squared error, its loss holds; nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from monosemy.coders.code import Code
from monosemy.coders.select import Choice, Scorer
from monosemy.coders.support import Support
from monosemy.errors import UserError

START_NORM = 0.2
"""Of free directions: the output starts small, and Adam, whose steps have one length, turns short
directions fast while the encoder keeps its own."""
DIVIDING = ("layer_norm", "rms")
"""What divides each token by its own size, so that activations have no other scale."""
NORMALISATIONS = ("", "centre", *DIVIDING)
LAYER_NORM_EPSILON = 1e-5
"""Added to the spread divided by, not to the one multiplied by, as OpenAI and SAELens do."""
_ROWS = 512
"""Rows of weights worked on at once: few enough to stay in a processor's cache."""


@dataclass(frozen=True, slots=True)
class TrainingCode:
    """What one batch's encoding gives in training, with gradients."""

    pre: Tensor
    """Pre-activations at the places of `support`."""
    values: Tensor
    """Activations there; some may be zero."""
    support: Support


class SparseCoder(nn.Module, ABC):
    """Base of all architectures; see the module's equations.

    Args:
        d_in: width of the activations encoded.
        width: number of features.
        d_out: width of the activations explained; None for d_in.
        tied: the encoder's rows are the decoder's, one parameter.
        skip: add a linear path from input to output (Paulo et al. 2025, arXiv 2501.18823).
        unit_norm: hold directions at unit norm in training; else they are free, start small, and
            are brought to unit norm when training is over.
        importance: where the largest are chosen, activations compare times an `importance` of each
            feature: so it is after whitening.
        normalise: of other tools' dictionaries, what is done to each token's activations: `centre`
            takes their mean over d_in away, `layer_norm` divides by their spread besides, `rms`
            divides by their root mean square. The output gets all back, and features fire in units
            of x: times the spread, or the root mean square.
        seed: of the initial directions.
    """

    architecture: ClassVar[str]
    has_k: ClassVar[bool] = False
    """Its L0 is given by k; otherwise a penalty, and who weighs it, decide."""

    competes: ClassVar[bool] = False
    """Whether one feature fires depends on how strongly others do."""

    target_l0: float | None = None
    """Features that are to fire on a token: set for training, some penalties use it."""

    W_enc: Float[Tensor, "width d_in"]
    b_enc: Float[Tensor, " width"]
    W_dec: Float[Tensor, "width d_out"]
    b_dec: Float[Tensor, " d_out"]
    W_skip: Float[Tensor, "d_out d_in"] | None
    importance: Float[Tensor, " width"] | None

    def __init__(
        self,
        d_in: int,
        width: int,
        *,
        d_out: int | None = None,
        tied: bool = False,
        skip: bool = False,
        unit_norm: bool = True,
        importance: bool = False,
        normalise: str = "",
        seed: int = 0,
    ) -> None:
        """Start from random unit directions, the encoder a copy of the decoder where it can be.

        Raises:
            UserError: a size below 1, tied weights of different sizes or of free norms, or an
                unknown `normalise`.
        """
        super().__init__()
        d_out = d_in if d_out is None else d_out
        if d_in < 1 or width < 1 or d_out < 1:
            raise UserError(f"d_in {d_in}, width {width} and d_out {d_out} must be at least 1")
        if tied and d_out != d_in:
            raise UserError(
                f"tied weights need one size, but d_in is {d_in} and d_out {d_out}", "drop `tied`"
            )
        if tied and not unit_norm:
            raise UserError("tied weights and free norms contradict one another", "drop either")
        if normalise not in NORMALISATIONS or (normalise and skip):
            raise UserError(
                f"normalise is `{normalise}`, skip {skip}",
                "allowed: `centre`, `layer_norm` or `rms`, and no linear path with them",
            )
        self.d_in, self.width, self.d_out = d_in, width, d_out
        self.tied, self.unit_norm, self.normalise = tied, unit_norm, normalise
        generator = torch.Generator().manual_seed(seed)
        directions = unit_rows(torch.randn(width, d_out, generator=generator))
        encoder = directions.clone()
        if d_out != d_in:
            encoder = unit_rows(torch.randn(width, d_in, generator=generator))
        self.W_dec = nn.Parameter(directions if unit_norm else START_NORM * directions)
        self.W_enc = self.W_dec if tied else nn.Parameter(encoder)
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.W_skip = nn.Parameter(torch.zeros(d_out, d_in)) if skip else None
        self.register_buffer("importance", torch.ones(width) if importance else None)

    @property
    def rates(self) -> dict[str, float]:
        """Return the parameters whose learning rate is a multiple of the others', and which."""
        return {}

    def options(self) -> dict[str, Any]:
        """Return what, beside sizes and weights, is needed to build this coder again."""
        usual = {"d_out": self.d_in, "unit_norm": True, "normalise": ""}
        now = {
            "d_out": self.d_out,
            "tied": self.tied,
            "skip": self.W_skip is not None,
            "unit_norm": self.unit_norm,
            "importance": self.importance is not None,
            "normalise": self.normalise,
        }
        return {name: value for name, value in now.items() if value != usual.get(name, False)}

    # Inference: a token's code depends on that token alone.

    @abstractmethod
    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Choose the entries that fire and say how much."""

    def pre_activations(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens width"]:
        """Return the encoder's output before selection."""
        if self.normalise:
            x, _, _ = self.normalised(x)
        return linear(x, self.W_enc, self.b_enc)  # in one: the sum alone is half a product's time

    def encode_sparse(self, x: Float[Tensor, "tokens d_in"]) -> Code:
        """Return the code of each token as its active entries."""
        self._check_input(x)
        return self.code_of(x, self.pre_activations(x))

    def code_of(self, x: Float[Tensor, "tokens d_in"], pre: Float[Tensor, "tokens width"]) -> Code:
        """Return the code of tokens whose pre-activations are known."""
        code = self.select(pre)
        if self.normalise not in DIVIDING:
            return code
        _, _, spread = self.normalised(x)
        return Code(code.values * spread[code.tokens, 0], code.support)

    def normalised(
        self, x: Float[Tensor, "tokens d_in"]
    ) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "_ 1"], Float[Tensor, "_ 1"]]:
        """Return what the encoder is given, and the mean and spread taken out of it."""
        if not self.normalise:
            return x, x.new_zeros(1, 1), x.new_ones(1, 1)
        if self.normalise == "rms":
            size = x.square().mean(1, keepdim=True).sqrt()
            return x / size.clamp_min(torch.finfo(x.dtype).tiny), x.new_zeros(1, 1), size
        mean = x.mean(1, keepdim=True)
        if self.normalise == "centre":
            return x - mean, mean, x.new_ones(1, 1)
        spread = x.std(1, keepdim=True)
        return (x - mean) / (spread + LAYER_NORM_EPSILON), mean, spread

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch width"]:
        """Return the code as a dense tensor; any leading shape."""
        z = self.encode_sparse(x.reshape(-1, x.shape[-1])).dense()
        return z.reshape(*x.shape[:-1], self.width)

    def encode_some(
        self, x: Float[Tensor, "tokens d_in"], features: Sequence[int]
    ) -> Float[Tensor, "tokens features"]:
        """Return the activations of some features; if they do not compete, computed alone."""
        if self.competes:
            return self.encode_sparse(x).columns(features)
        part, rows = copy(self), torch.tensor(features, dtype=torch.long, device=x.device)
        part.width = len(features)
        for held in ("_parameters", "_buffers"):
            weights = getattr(self, held)
            part.__dict__[held] = {
                name: values[rows] if self._is_by_feature(name, values) else values
                for name, values in weights.items()
            }
        return part.encode_sparse(x).dense()

    def _is_by_feature(self, name: str, values: Tensor | None) -> bool:
        """Say whether a weight has a row for each feature."""
        if name in ("b_dec", "W_skip") or values is None:
            return False
        return values.ndim > 0 and len(values) == self.width

    def decode(self, z: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch d_out"]:
        """Return what a dense code stands for; without what needs x, such as a linear path."""
        return z @ self.W_dec + self.b_dec

    def decode_sparse(self, code: Code) -> Float[Tensor, "tokens d_out"]:
        """Return what a sparse code stands for; without what needs x, such as a linear path."""
        return code.decode(self.W_dec) + self.b_dec

    def reconstruct(
        self, x: Float[Tensor, "tokens d_in"]
    ) -> tuple[Float[Tensor, "tokens d_out"], Code]:
        """Return the output and the code it came from."""
        code = self.encode_sparse(x)
        return code.decode(self.W_dec) + self.base(x), code

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Return decode(encode(x)), and the linear path where there is one."""
        out, _ = self.reconstruct(x.reshape(-1, x.shape[-1]))
        return out.reshape(*x.shape[:-1], self.d_out)

    # Training: a choice may span the batch; gradients flow through chosen places only.

    @abstractmethod
    def choose(self, x: Float[Tensor, "tokens d_in"], scorer: Scorer) -> Choice:
        """Choose the places that may fire in training."""

    def activate(self, pre: Tensor, support: Support) -> Tensor:
        """Return activations from pre-activations, place by place."""
        return pre.relu()

    def encode_training(self, x: Float[Tensor, "tokens d_in"], scorer: Scorer) -> TrainingCode:
        """Return the code of a training batch.

        Raises:
            UserError: the coder is another tool's, with a normalisation of its own.
        """
        if self.normalise:
            raise UserError(
                f"a coder with `{self.normalise}` of its own is read, not trained",
                "train one without: activations are centred and scaled anyway",
            )
        support, known = self.choose(x, scorer)
        pre = support.affine(x, self.W_enc, self.b_enc, known)
        return TrainingCode(pre, self.activate(pre, support), support)

    def base(
        self, x: Float[Tensor, "tokens d_in"]
    ) -> Float[Tensor, " d_out"] | Float[Tensor, "tokens d_out"]:
        """Return the output where no feature fires."""
        if self.normalise:
            _, mean, spread = self.normalised(x)
            return self.b_dec * spread + mean
        return self.b_dec if self.W_skip is None else self.b_dec + x @ self.W_skip.T

    def error(
        self, code: TrainingCode, rest: Float[Tensor, "tokens d_out"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "tokens d_out"]]:
        """Return the squared error, summed over d_out, mean over tokens, and what is left over.

        Args:
            code: the batch's code.
            rest: what features are to explain: the target less `base`.
        """
        left = rest - code.support.decode(code.values, self.W_dec)
        return mean_square(left), left

    def penalty(self, code: TrainingCode) -> Float[Tensor, ""]:
        """Return the sparsity penalty a token, before it is weighed."""
        return code.values.new_zeros(())

    def extra_error(
        self, code: TrainingCode, rest: Float[Tensor, "tokens d_out"]
    ) -> Float[Tensor, ""]:
        """Return a further squared error the loss holds."""
        return code.values.new_zeros(())

    def advance(self, progress: float) -> None:
        """Follow the run, which goes from 0 to 1, where the loss changes with it."""

    @torch.no_grad()
    def start(self, x: Float[Tensor, "tokens d_in"], l0: float) -> None:
        """Set biases, before training, so that about l0 features fire on a token of a sample."""

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring weights back, after a step, to where they are to stay."""
        if self.unit_norm:
            for rows in self.W_dec.split(_ROWS):
                rows.div_(rows.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take out of each direction's gradient the part along it, which its norm undoes."""
        gradient = self.W_dec.grad
        if self.unit_norm and gradient is not None:
            for part, rows in zip(gradient.split(_ROWS), self.W_dec.split(_ROWS), strict=True):
                along = (part * rows).sum(1, keepdim=True)
                part.addcmul_(rows, along, value=-1)

    def norms(self) -> Float[Tensor, " width"] | None:
        """Return the directions' norms, with gradient; None where all are 1."""
        return None if self.unit_norm else self.W_dec.norm(dim=1)

    @torch.no_grad()
    def scale(self) -> Float[Tensor, " width"] | None:
        """Return norms over their mean, or `importance`; None where all features are alike.

        Times them, pre-activations compare as what features add to the output.
        """
        if self.importance is not None:
            return self.importance
        norms = self.norms()
        return None if norms is None else norms / norms.mean().clamp_min(1e-8)

    def strengths(self, values: Tensor, support: Support) -> Tensor:
        """Return values times their directions' norms."""
        norms = self.norms()
        return values if norms is None else values * support.at(norms)

    # Scale: training sees centred and scaled activations, the finished coder the model's own.

    @torch.no_grad()
    def fold_norms(self) -> None:
        """Bring directions to unit norm without changing the output."""
        norms = self.W_dec.norm(dim=1).clamp_min(1e-8)
        if self.tied:  # of unit norm by construction, but for rounding
            return
        self.scale_features(norms)
        self.W_dec.div_(norms[:, None])
        self.W_enc.mul_(norms[:, None])

    @torch.no_grad()
    def scale_features(self, factor: Float[Tensor, " width"] | Float[Tensor, ""]) -> None:
        """Multiply whatever is in units of a feature's activation, but weights."""
        self.b_enc.mul_(factor)
        if self.importance is not None and factor.ndim:
            self.importance.div_(factor)

    @torch.no_grad()
    def shift_features(self, by: Float[Tensor, " width"]) -> None:
        """Make up for x W_enc^T having grown by this much."""
        self.b_enc.sub_(by)

    @torch.no_grad()
    def unwhiten(
        self,
        whiten: Float[Tensor, "d_in d_in"],
        colour: Float[Tensor, "d_out d_out"],
    ) -> None:
        """Turn a coder of x @ whiten into the coder of x that does the same.

        Directions, of unit norm before, are brought to it again; where the largest are chosen,
        `importance` keeps the choice as it was.

        Args:
            whiten: what inputs were multiplied by in training.
            colour: the inverse of what was explained was multiplied by.
        """
        self.untie()
        if self.has_k:
            self.importance = torch.ones_like(self.b_enc)
        self.W_enc.copy_(self.W_enc @ whiten.to(self.W_enc).T)
        self.W_dec.copy_(self.W_dec @ colour.to(self.W_dec))
        self.b_dec.copy_(self.b_dec @ colour.to(self.W_dec))
        if self.W_skip is not None:
            self.W_skip.copy_(colour.to(self.W_skip).T @ self.W_skip @ whiten.to(self.W_skip).T)
        self.fold_norms()

    @torch.no_grad()
    def fold(
        self,
        mean: Float[Tensor, " d_in"],
        scale: float,
        target_mean: Float[Tensor, " d_out"] | None = None,
        target_scale: float | None = None,
    ) -> None:
        """Turn a coder of (x - mean) * scale into the coder of x that does the same.

        Directions keep their norm and activations come out in units of what is explained: z
        becomes z / scale. A transcoder has the centre and scale of its target too.
        """
        mean = mean.to(self.W_enc)
        target_mean = mean if target_mean is None else target_mean.to(self.W_enc)
        target_scale = scale if target_scale is None else target_scale
        self.shift_features(scale * (self.W_enc @ mean))
        if scale != target_scale:
            self.untie()  # its two sides now differ in scale
            self.W_enc.mul_(scale / target_scale)
        self.scale_features(self.b_enc.new_tensor(1 / target_scale))
        self.b_dec.div_(target_scale).add_(target_mean)
        if self.W_skip is not None:
            self.W_skip.mul_(scale / target_scale)
            self.b_dec.sub_(self.W_skip @ mean)

    def untie(self) -> None:
        """Give the encoder weights of its own, where it had the decoder's."""
        if self.tied:
            self.tied, encoder = False, self.W_enc.detach().clone()
            self.W_enc = nn.Parameter(encoder, requires_grad=self.W_dec.requires_grad)

    def _check_input(self, x: Tensor) -> None:
        if x.shape[-1] != self.d_in:
            raise UserError(
                f"activations have width {x.shape[-1]}, this dictionary was made for {self.d_in}",
                "attach it to the hook point it was trained on: `monosemy doctor` finds it",
            )


def mean_square(left: Float[Tensor, "tokens d"]) -> Float[Tensor, ""]:
    """Return the squared norm, a mean over tokens; 0 of no tokens."""
    return sum_of_squares(left) / max(len(left), 1)


def sum_of_squares(left: Tensor) -> Float[Tensor, ""]:
    """Return the squared norm of a whole tensor."""
    return _SumOfSquares.apply(left)


def check_k(k: int, width: int) -> int:
    """Check a number of features a token.

    Raises:
        UserError: k is below 1 or above the width.
    """
    if not 1 <= k <= width:
        raise UserError(
            f"k is {k}, but the dictionary has {width} features",
            f"choose k from 1 to {width}; 32 is usual",
        )
    return k


class _SumOfSquares(torch.autograd.Function):
    """The squared norm, without the matrices that `square` makes on its way there and back."""

    @staticmethod
    def forward(ctx: Any, left: Tensor) -> Tensor:
        ctx.save_for_backward(left)
        return torch.linalg.vector_norm(left).square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (left,) = ctx.saved_tensors
        return left * (2 * gradients[0])


def unit_rows(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return rows brought to norm 1; a row of zeros stays one."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)
