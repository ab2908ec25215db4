"""Features that no longer fire: counted in tokens, and brought back."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from monosemy.coders import SparseCoder
from monosemy.coders.coder import TrainingCode, sum_of_squares, unit_rows
from monosemy.coders.support import SparseSupport
from monosemy.errors import UserError

Revival = Literal["auxk", "ghost", "resample", "none"]

AUXK_WEIGHT = 1 / 32
RESAMPLES = 4
"""Times dead features are made anew, evenly over the first two thirds of a run."""
_RESAMPLED_ENCODER = 0.2
"""Norm of a new encoder row, over the mean of live ones."""
_SHARED = ("W_enc", "W_dec", "W_skip", "b_enc", "b_dec")
"""What every coder has; the parameters that some have beside are [width]."""


def check_revival(name: str) -> Revival:
    """Check a way of bringing dead features back.

    Raises:
        UserError: there is no such way.
    """
    for known in get_args(Revival):
        if name == known:
            return known
    raise UserError(f"no way `{name}` of reviving", f"allowed: {', '.join(get_args(Revival))}")


def auxk_loss(
    coder: SparseCoder,
    x: Float[Tensor, "tokens d_in"],
    left: Float[Tensor, "tokens d_out"],
    dead: Bool[Tensor, " width"],
    entries: int,
) -> Float[Tensor, ""]:
    """Return AuxK: how badly dead features explain what live ones left, 1 for not at all.

    The d_in / 2 dead features with the largest pre-activations on each token predict what is left
    over, which is a constant here; without `b_dec`, which it no longer holds (Gao et al. 2024,
    appendix A.2). Gradients reach the encoder and the decoder of dead features only. It looks at
    the first tokens of the (shuffled) batch: as many as make `entries` active places in all, so
    that it never costs more than the code itself.
    """
    numbers = dead.nonzero().squeeze(1)
    k = min(max(coder.d_in // 2, 1), len(numbers))
    n_tokens = min(max(entries // k, 64), len(x))
    x, left = x[:n_tokens], left[:n_tokens].detach()
    W_enc, W_dec = _rows(coder.W_enc, numbers), _rows(coder.W_dec, numbers)
    b_enc = coder.b_enc[numbers]
    with torch.no_grad():
        best, columns = (x @ W_enc.T + b_enc).topk(k, dim=1, sorted=False)
        support = SparseSupport.from_rows(columns, len(numbers)).subset(best.reshape(-1) > 0)
    values = support.affine(x, W_enc, b_enc).relu()
    wrong = sum_of_squares(left - support.decode(values, W_dec))
    spread = sum_of_squares(left - left.mean(0))
    # One token, or a batch explained exactly, leaves nothing to compare with.
    return torch.where(spread > 1e-12, wrong / spread.clamp_min(1e-12), 0.0)


def ghost_loss(
    coder: SparseCoder,
    x: Float[Tensor, "tokens d_in"],
    left: Float[Tensor, "tokens d_out"],
    dead: Bool[Tensor, " width"],
    entries: int,
) -> Float[Tensor, ""]:
    """Return ghost gradients' loss, whose value is that of the squared error over d_out.

    Dead features fire by exp(pre); their output, brought to half the norm of what is left over,
    predicts it (Anthropic, January 2024 update). Kept to reproduce old dictionaries: AuxK is
    better.
    """
    numbers = dead.nonzero().squeeze(1)
    n_tokens = min(max(entries // len(numbers), 64), len(x))
    x, left = x[:n_tokens], left[:n_tokens].detach()
    pre = x @ _rows(coder.W_enc, numbers).T + coder.b_enc[numbers]
    ghost = pre.clamp_max(20).exp() @ _rows(coder.W_dec, numbers)
    scale = left.norm(dim=1, keepdim=True) / (2 * ghost.norm(dim=1, keepdim=True)).clamp_min(1e-12)
    wrong = (left - ghost * scale.detach()).square().sum(1).mean()
    error = left.square().sum(1).mean()
    return wrong * (error / wrong.clamp_min(1e-12)).detach() / coder.d_out


@torch.no_grad()
def resample(
    coder: SparseCoder,
    optimizer: torch.optim.Optimizer,
    x: Float[Tensor, "tokens d_in"],
    left: Float[Tensor, "tokens d_out"],
    dead: Bool[Tensor, " width"],
    generator: torch.Generator,
) -> int:
    """Make dead features anew from tokens that are explained badly; return how many.

    Tokens are drawn with probability proportional to their squared loss, each at most once. A new
    direction is what the live features left of its token, the encoder row the token's own
    activations at a fifth of the live rows' mean norm, the bias 0; whatever else an architecture
    has for each feature, such as a threshold, takes the live features' mean. Adam forgets them
    all (Bricken et al. 2023, appendix; it takes the input itself for the direction).
    """
    loss = left.square().sum(1).double().cpu()
    numbers = dead.nonzero().squeeze(1)[: int((loss > 0).sum())]
    if not len(numbers) or bool(dead.all()):
        return 0
    chances = (loss / loss.max()).square().clamp_min(1e-12) * (loss > 0)
    drawn = torch.multinomial(chances, len(numbers), generator=generator).to(x.device)
    live_norm = coder.W_enc[~dead].norm(dim=1).mean()
    coder.W_dec[numbers] = unit_rows(left[drawn]) * coder.W_dec[~dead].norm(dim=1).mean()
    if not coder.tied:
        coder.W_enc[numbers] = unit_rows(x[drawn]) * live_norm * _RESAMPLED_ENCODER
    coder.b_enc[numbers] = 0
    own: list[Tensor] = [p for name, p in coder.named_parameters() if name not in _SHARED]
    for parameter in own:
        parameter[numbers] = parameter[~dead].mean()
    coder.constrain()
    for parameter in (coder.W_dec, coder.W_enc, coder.b_enc, *own):
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimizer.state[parameter]:
                optimizer.state[parameter][moment][numbers] = 0
    return len(numbers)


def fired(code: TrainingCode) -> Bool[Tensor, " width"]:
    """Return which features fired anywhere in the batch."""
    active = code.values.detach() > 0
    if isinstance(code.support, SparseSupport):
        out = active.new_zeros(code.support.width)
        out[code.support.indices[active]] = True
        return out
    return active.any(0)


def _rows(W: Float[Tensor, "width d"], numbers: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """Return rows of W; their gradient is sparse and costs nothing for the others."""
    return functional.embedding(numbers, W, sparse=W.device.type != "mps")
