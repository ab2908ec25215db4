"""What every sparse coder shares: weights, encoding, decoding, scale.

    pre = x W_enc^T + b_enc        pre-activations, [tokens, width]
    z   = select(pre)              sparse, non-negative, [tokens, width]
    xhat = z W_dec + b_dec         [tokens, d_in]

Rows of `W_enc` and `W_dec` are features. An architecture says how entries are selected and what,
beside the reconstruction, its loss holds; nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosemy.coders.code import Code
from monosemy.errors import UserError


class SparseCoder(nn.Module, ABC):
    """Base of all architectures; see the module's equations."""

    architecture: ClassVar[str]

    W_enc: Float[Tensor, "width d_in"]
    b_enc: Float[Tensor, " width"]
    W_dec: Float[Tensor, "width d_in"]
    b_dec: Float[Tensor, " d_in"]

    def __init__(self, d_in: int, width: int, *, seed: int = 0) -> None:
        """Start from random unit directions, the encoder a copy of the decoder.

        Raises:
            UserError: a size below 1.
        """
        super().__init__()
        if d_in < 1 or width < 1:
            raise UserError(f"d_in {d_in} and width {width} must be at least 1")
        self.d_in, self.width = d_in, width
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(width, d_in, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.W_enc = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.W_dec = nn.Parameter(directions)
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return what, beside sizes and weights, is needed to build this coder again."""

    @abstractmethod
    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Choose the entries that fire; each token's choice depends on that token alone."""

    def select_training(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Choose the entries that fire in training, where a choice may span the batch."""
        return self.select(pre)

    def penalty(self, code: Code) -> Float[Tensor, ""]:
        """Return what the training loss adds to the squared error, per token."""
        return code.values.new_zeros(())

    def pre_activations(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens width"]:
        """Return the encoder's output before selection."""
        return x @ self.W_enc.T + self.b_enc

    def encode_sparse(self, x: Float[Tensor, "tokens d_in"]) -> Code:
        """Return the code of each token as its active entries."""
        self._check_input(x)
        return self.select(self.pre_activations(x))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch width"]:
        """Return the code as a dense tensor; any leading shape."""
        z = self.encode_sparse(x.reshape(-1, x.shape[-1])).dense()
        return z.reshape(*x.shape[:-1], self.width)

    def decode(self, z: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch d_in"]:
        """Return the activations that a dense code stands for."""
        return z @ self.W_dec + self.b_dec

    def decode_sparse(self, code: Code) -> Float[Tensor, "tokens d_in"]:
        """Return the activations that a sparse code stands for."""
        return code.decode(self.W_dec) + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Return the reconstruction: decode(encode(x))."""
        code = self.encode_sparse(x.reshape(-1, x.shape[-1]))
        return self.decode_sparse(code).reshape(x.shape)

    @torch.no_grad()
    def fold(self, mean: Float[Tensor, " d_in"], scale: float) -> None:
        """Turn a coder of (x - mean) * scale into the coder of x that does the same.

        Directions keep their norm and activations come out in units of x: z becomes z / scale.
        """
        mean = mean.to(self.W_enc)
        self.b_enc.div_(scale).sub_(self.W_enc @ mean)
        self.b_dec.div_(scale).add_(mean)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Bring every direction back to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    def _check_input(self, x: Tensor) -> None:
        if x.shape[-1] != self.d_in:
            raise UserError(
                f"activations have width {x.shape[-1]}, this dictionary was made for {self.d_in}",
                "attach it to the hook point it was trained on: `monosemy doctor` finds it",
            )


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
