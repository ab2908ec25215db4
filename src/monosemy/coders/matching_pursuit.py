"""Matching pursuit: features are chosen one after another, each by what is left unexplained.

Mallat and Zhang 1993; as a sparse autoencoder, Costa et al. 2025, arXiv 2506.05239.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder
from monosemy.coders.select import Choice, Scorer
from monosemy.errors import UserError


class MatchingPursuit(SparseCoder):
    """z grows by max_i r W_enc_i at that i, r shrinks by as much of W_dec_i; r starts as x - b_dec.

    A token is done after `steps`, when the norm of r is below `stop_norm`, or, with
    `stop_repeating`, when a step has added no new feature. Encoder and decoder are one matrix but
    for the scale of activations. Dictionaries of other tools are read; it is not trained here.
    """

    architecture = "matching_pursuit"
    competes = True

    def __init__(
        self,
        d_in: int,
        width: int,
        *,
        steps: int | None = None,
        stop_norm: float = 0.01,
        stop_repeating: bool = True,
        **common: Any,
    ) -> None:
        """Take at most `steps` steps a token; None for d_in of them.

        Raises:
            UserError: steps is below 1.
        """
        super().__init__(d_in, width, **common)
        self.steps = d_in if steps is None else steps
        if self.steps < 1:
            raise UserError(f"steps is {steps}", "it must be at least 1")
        self.stop_norm, self.stop_repeating = stop_norm, stop_repeating

    def options(self) -> dict[str, Any]:
        """Return when it stops."""
        stops = {"stop_norm": self.stop_norm, "stop_repeating": self.stop_repeating}
        return {**super().options(), "steps": self.steps, **stops}

    def code_of(self, x: Float[Tensor, "tokens d_in"], pre: Float[Tensor, "tokens width"]) -> Code:
        """Return the code of tokens, found step by step; `pre` is of no use."""
        inputs, _, spread = self.normalised(x)
        z = self._pursue(inputs - self.b_dec)
        return Code.from_mask(z * spread, z > 0)

    def _pursue(self, left: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens width"]:
        z = left.new_zeros(len(left), self.width)
        rows = torch.arange(len(left), device=left.device)
        going = torch.ones_like(rows, dtype=torch.bool)
        for _ in range(self.steps):
            best = (left @ self.W_enc.T).argmax(1)
            value = (left * self.W_enc[best]).sum(1).relu() * going
            is_new = (z[rows, best] == 0) & (value > 0)
            z[rows, best] += value
            left = left - value[:, None] * self.W_dec[best]
            if self.stop_repeating:
                going = going & is_new
            if self.stop_norm > 0:
                going = going & (left.norm(dim=1) >= self.stop_norm)
            if not going.any():
                break
        return z

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Refuse: what a feature does depends on what others have explained.

        Raises:
            UserError: always.
        """
        raise UserError(
            "matching pursuit has no code of pre-activations", "give it activations: `encode`"
        )

    def choose(self, x: Float[Tensor, "tokens d_in"], scorer: Scorer) -> Choice:
        """Refuse training.

        Raises:
            UserError: always.
        """
        raise UserError("`matching_pursuit` is read, not trained", "topk is the nearest")
