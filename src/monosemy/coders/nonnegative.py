"""Non-negative weights, after non-negative matrix factorisation (Lee & Seung 1999)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders.relu import ReLU


class NonNegative(ReLU):
    """ReLU whose decoder is nowhere negative: features add to a floor and never subtract.

    Activations of a language model have both signs, which plain factorisation cannot explain. As
    in affine factorisation (Laurberg & Hansen 2007) the output is a floor, `b_dec`, plus
    non-negative activations times non-negative directions. The floor starts low in each
    dimension. Weights are clamped after each step, then brought to unit norm.
    """

    architecture = "nonnegative"

    def __init__(self, d_in: int, width: int, **common: Any) -> None:
        """Start from random directions in the positive orthant."""
        super().__init__(d_in, width, **common)
        with torch.no_grad():
            self.W_dec.abs_()
            if self.d_in == self.d_out:
                self.W_enc.copy_(self.W_dec)

    @torch.no_grad()
    def constrain(self) -> None:
        """Clamp directions at 0, then bring them to unit norm."""
        self.W_dec.clamp_min_(0)
        super().constrain()

    @torch.no_grad()
    def start(self, x: Float[Tensor, "tokens d_in"], l0: float) -> None:
        """Lower the biases, and put the floor at each dimension's lowest percent."""
        super().start(x, l0)
        if self.d_in == self.d_out:
            self.b_dec.copy_(x[:4096].quantile(0.01, dim=0))
