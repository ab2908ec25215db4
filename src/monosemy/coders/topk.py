"""TopK: the k largest pre-activations of each token (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder, check_k


class TopK(SparseCoder):
    """z = ReLU(the k largest of pre); fewer fire where fewer than k are positive."""

    architecture = "topk"

    def __init__(self, d_in: int, width: int, *, k: int = 32, seed: int = 0) -> None:
        """Let at most k features fire on a token."""
        super().__init__(d_in, width, seed=seed)
        self.k = check_k(k, width)

    def options(self) -> dict[str, Any]:
        """Return k."""
        return {"k": self.k}

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep the k largest entries of each row."""
        values, indices = pre.topk(self.k, dim=1, sorted=False)
        return Code.from_topk(values.relu(), indices, self.width)
