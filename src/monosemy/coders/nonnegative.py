"""Non-negative weights, after non-negative matrix factorisation (Lee & Seung 1999)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders.relu import ReLU


class NonNegative(ReLU):
    """ReLU whose decoder is nowhere negative: features add to a floor and never subtract.

    Activations of a language model have both signs, which plain factorisation cannot explain. As
    in affine factorisation (Laurberg & Hansen 2007) the output is a floor, `b_dec`, plus
    non-negative activations times non-negative directions. Weights are clamped after each step,
    then brought to unit norm.
    """

    architecture = "nonnegative"

    def __init__(self, d_in: int, width: int, **common: Any) -> None:
        """Start from the positive parts of random directions, which the encoder keeps whole."""
        super().__init__(d_in, width, **common)
        with torch.no_grad():
            nothing_left = self.W_dec.amax(dim=1, keepdim=True) <= 0
            self.W_dec.mul_(1 - 2 * nothing_left.to(self.W_dec.dtype))
        self.constrain()

    @torch.no_grad()
    def constrain(self) -> None:
        """Clamp directions at 0, then bring them to unit norm."""
        self.W_dec.clamp_min_(0)
        super().constrain()

    @torch.no_grad()
    def start(self, x: Float[Tensor, "tokens d_in"], l0: float) -> None:
        """Lower the biases, and the floor by what features then add to it on average.

        Non-negative directions overlap, so that features that fire together overshoot: the
        encoder is scaled down until they spread no further than what they are to explain.
        """
        self.constrain()
        super().start(x, l0)
        added = self.encode_sparse(x[:4096]).decode(self.W_dec)
        mean = added.mean(0)
        spread = (added - mean).norm(dim=1).mean().item()
        scale = 1.0 if self.tied else min(math.sqrt(self.d_out) / max(spread, 1e-8), 1.0)
        if scale < 1:
            self.W_enc.mul_(scale)
            self.b_enc.mul_(scale)
        self.b_dec.sub_(mean * scale)
