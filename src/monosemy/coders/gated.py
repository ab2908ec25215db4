"""Gated: one path decides whether a feature fires, another how much.

Rajamanoharan et al. 2024, arXiv 2404.16014.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder, TrainingCode, mean_square
from monosemy.coders.relu import bar_for
from monosemy.coders.select import Choice, Scorer
from monosemy.coders.support import Support


class Gated(SparseCoder):
    """z = 1[pre > 0] * ReLU(exp(r_mag) * x W_enc^T + b_mag), where pre = x W_enc^T + b_enc.

    The gate's step passes no gradient: the encoder learns when to fire from the penalty on
    ReLU(pre) and from a second error, that of ReLU(pre) decoded by a decoder held constant.
    """

    architecture = "gated"

    def __init__(self, d_in: int, width: int, **common: Any) -> None:
        """Start with magnitudes equal to the gate's input."""
        super().__init__(d_in, width, **common)
        self.r_mag = nn.Parameter(torch.zeros(width))
        self.b_mag = nn.Parameter(torch.zeros(width))

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep the entries whose gate is open."""
        gates = Code.from_mask(pre, pre > 0)
        return Code(self.activate(gates.values, gates.support), gates.support)

    def choose(self, x: Float[Tensor, "tokens d_in"], scorer: Scorer) -> Choice:
        """Choose the open gates."""
        return scorer.positive(x, self.W_enc, self.b_enc), None

    def activate(self, pre: Tensor, support: Support) -> Tensor:
        """Return the magnitudes where gates are open, else 0."""
        linear = pre - support.at(self.b_enc)
        magnitude = (support.at(self.r_mag.exp()) * linear + support.at(self.b_mag)).relu()
        return magnitude * (pre > 0)

    def penalty(self, code: TrainingCode) -> Float[Tensor, ""]:
        """Return the weighted L1 norm of ReLU(pre), a mean over tokens.

        Free norms count as constants, for they are constants in `extra_error`: where only one of
        the two saw their gradient, directions would shrink and magnitudes make up for it.
        """
        norms, values = self.norms(), code.pre.relu()
        weighed = values if norms is None else values * code.support.at(norms.detach())
        return weighed.sum() / max(code.support.n_tokens, 1)

    def extra_error(
        self, code: TrainingCode, rest: Float[Tensor, "tokens d_out"]
    ) -> Float[Tensor, ""]:
        """Return the error of ReLU(pre), decoded with decoder and bias held constant."""
        decoded = code.support.decode(code.pre.relu(), self.W_dec.detach())
        return mean_square(rest.detach() - decoded)

    @torch.no_grad()
    def start(self, x: Float[Tensor, "tokens d_in"], l0: float) -> None:
        """Lower both biases until about l0 features fire on a token, most of them weakly."""
        bar = bar_for(self, x, l0)
        self.b_enc.sub_(bar)
        self.b_mag.sub_(bar)

    @torch.no_grad()
    def scale_features(self, factor: Float[Tensor, " width"] | Float[Tensor, ""]) -> None:
        """Scale the magnitudes' biases too."""
        super().scale_features(factor)
        self.b_mag.mul_(factor)

    @torch.no_grad()
    def shift_features(self, by: Float[Tensor, " width"]) -> None:
        """Shift the magnitudes' biases too."""
        super().shift_features(by)
        self.b_mag.sub_(self.r_mag.exp() * by)
