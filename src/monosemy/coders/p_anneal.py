"""p-annealing: from L1 towards L0 (Karvonen et al. 2024, arXiv 2408.00113)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from monosemy.coders.coder import TrainingCode
from monosemy.coders.relu import ReLU
from monosemy.errors import UserError

START, END = 0.2, 0.8
"""The part of the run over which p falls."""
_SMALL = 0.01


class PAnneal(ReLU):
    """ReLU whose penalty is sum_i (z_i ||W_dec_i||)^p, p falling from 1 to `p_end`.

    The sum is brought, without gradient, to the value it has at p = 1, so that its weight means
    the same throughout: the paper rescales the weight at each change of p to that end.
    """

    architecture = "p_anneal"

    def __init__(self, d_in: int, width: int, *, p_end: float = 0.2, **common: Any) -> None:
        """End at the power `p_end`.

        Raises:
            UserError: it is not above 0, where the penalty has no gradient, or above 1.
        """
        super().__init__(d_in, width, **common)
        if not 0 < p_end <= 1:
            raise UserError(f"p_end is {p_end}", "allowed: above 0, up to 1; 0.2 is usual")
        self.p_end, self.p = p_end, 1.0

    def options(self) -> dict[str, Any]:
        """Return the power it ends at."""
        return {**super().options(), "p_end": self.p_end}

    def advance(self, progress: float) -> None:
        """Set p for this part of the run."""
        share = min(max((progress - START) / (END - START), 0.0), 1.0)
        self.p = 1 + share * (self.p_end - 1)

    def penalty(self, code: TrainingCode) -> Float[Tensor, ""]:
        """Return the annealed norm, at the value of the L1 norm."""
        l1 = super().penalty(code)
        if self.p == 1:
            return l1
        # z^p has no finite gradient at 0; places that do not fire have none through z either.
        fired, strengths = code.values > 0, self.strengths(code.values, code.support)
        powers = ((strengths + _SMALL) ** self.p * fired).sum() / max(code.support.n_tokens, 1)
        return powers * (l1 / powers.clamp_min(_SMALL)).detach()
