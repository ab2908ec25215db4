"""GroupMax: the largest pre-activation of each of k groups of features (EleutherAI's sparsify)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder, check_k
from monosemy.coders.select import Choice, Scorer
from monosemy.coders.support import SparseSupport
from monosemy.errors import UserError


class GroupMax(SparseCoder):
    """z = ReLU(the largest of pre in each of k groups), groups being runs of width / k features.

    Cheaper to select than TopK; two features of one group never fire together.
    """

    architecture = "groupmax"
    has_k = True
    competes = True

    def __init__(self, d_in: int, width: int, *, k: int = 32, **common: Any) -> None:
        """Let one feature of each of k groups fire.

        Raises:
            UserError: k is below 1, above the width, or does not divide it.
        """
        super().__init__(d_in, width, **common)
        self.k = check_k(k, width)
        if width % k:
            raise UserError(
                f"width {width} cannot be cut into {k} groups of one size",
                f"choose k among the divisors of {width}",
            )

    def options(self) -> dict[str, Any]:
        """Return k."""
        return {**super().options(), "k": self.k}

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep the largest entry of each group, where it is positive."""
        indices = self._largest(pre if self.importance is None else pre * self.importance)
        return Code.from_topk(pre.gather(1, indices).relu(), indices, self.width)

    @torch.no_grad()
    def choose(self, x: Float[Tensor, "tokens d_in"], scorer: Scorer) -> Choice:
        """Choose the largest of each group."""
        pre, scale = self.pre_activations(x), self.scale()
        indices = self._largest(pre if scale is None else pre * scale)
        return SparseSupport.from_rows(indices, self.width), pre.gather(1, indices).reshape(-1)

    def _largest(self, scores: Float[Tensor, "tokens width"]) -> Int[Tensor, "tokens k"]:
        size = self.width // self.k
        first = torch.arange(0, self.width, size, device=scores.device)
        return scores.unflatten(1, (self.k, size)).argmax(2) + first
