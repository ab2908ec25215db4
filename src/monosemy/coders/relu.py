"""ReLU with an L1 penalty weighted by decoder norm (Anthropic, April 2024 update)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder
from monosemy.errors import UserError


class ReLU(SparseCoder):
    """z = ReLU(pre); the loss adds l1 * sum_i z_i ||W_dec_i||, the norm with its gradient."""

    architecture = "relu"

    def __init__(self, d_in: int, width: int, *, l1: float = 5.0, seed: int = 0) -> None:
        """Penalise activations by `l1`, which is for activations of mean norm sqrt(d_in)."""
        super().__init__(d_in, width, seed=seed)
        if l1 < 0:
            raise UserError(f"l1 is {l1}, it cannot be negative", "5 is usual")
        self.l1 = l1

    def options(self) -> dict[str, Any]:
        """Return l1."""
        return {"l1": self.l1}

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep the positive entries."""
        return Code.from_mask(pre, pre > 0)

    def penalty(self, code: Code) -> Float[Tensor, ""]:
        """Return the weighted L1 norm of the code, a mean over tokens."""
        norms = self.W_dec.norm(dim=1)[code.indices]
        return self.l1 * (code.values * norms).sum() / max(len(code.offsets) - 1, 1)
