"""TopK: the k largest pre-activations of each token (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder, TrainingCode, check_k, mean_square
from monosemy.coders.select import Choice, Scorer
from monosemy.coders.support import SparseSupport

MULTI_K, MULTI_WEIGHT = 4, 1 / 8
"""Multi-TopK's wider code, in multiples of k, and its error's weight (Gao et al., section 5.3)."""


class TopK(SparseCoder):
    """z = ReLU(the k largest of pre); fewer fire where fewer than k are positive.

    With `multi`, the loss also holds an eighth of the error with 4k features, which makes codes
    that can be cut at any number of features up to that.
    """

    architecture = "topk"
    has_k = True
    competes = True

    def __init__(
        self, d_in: int, width: int, *, k: int = 32, multi: bool = False, **common: Any
    ) -> None:
        """Let at most k features fire on a token."""
        super().__init__(d_in, width, **common)
        self.k, self.multi = check_k(k, width), multi
        if multi:
            check_k(MULTI_K * k, width)

    def options(self) -> dict[str, Any]:
        """Return k, and `multi` where it is on."""
        multi = {"multi": True} if self.multi else {}
        return {**super().options(), "k": self.k, **multi}

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep the k largest entries of each row."""
        compared = pre if self.importance is None else pre * self.importance
        indices = compared.topk(self.k, dim=1, sorted=False).indices
        return Code.from_topk(pre.gather(1, indices).relu(), indices, self.width)

    def choose(self, x: Float[Tensor, "tokens d_in"], scorer: Scorer) -> Choice:
        """Choose the k largest of each token, 4k with `multi`."""
        k = MULTI_K * self.k if self.multi else self.k
        return scorer.topk(x, self.W_enc, self.b_enc, k, self.scale())

    def error(
        self, code: TrainingCode, rest: Float[Tensor, "tokens d_out"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "tokens d_out"]]:
        """Return the error with k features, and with `multi` that with 4k added."""
        if not self.multi:
            return super().error(code, rest)
        assert isinstance(code.support, SparseSupport)
        strengths = self.strengths(code.values, code.support).detach()
        few = code.values * _largest(strengths, code.support, self.k)
        left = rest - code.support.decode(few, self.W_dec)
        wide = rest - code.support.decode(code.values, self.W_dec)
        return mean_square(left) + MULTI_WEIGHT * mean_square(wide), left


def _largest(values: Tensor, support: SparseSupport, k: int) -> Tensor:
    """Return 1 at the k largest values of each token, else 0."""
    order = values.sort(descending=True, stable=True).indices
    order = order[support.tokens[order].sort(stable=True).indices]
    place = torch.arange(len(values), device=values.device)
    rank = place - support.at_tokens(support.offsets[:-1])
    chosen = torch.zeros_like(values)
    chosen[order[rank < k]] = 1
    return chosen
