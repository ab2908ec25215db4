"""Which features fire, and how often."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Activity:
    """Count the tokens on which each feature fires.

    Figures: `density` [width], the share of tokens a feature fires on; `dead_share`, the share
    of features that fired on none of the `n_tokens` seen; `max` [width], largest activation.
    """

    def __init__(self, width: int) -> None:
        self.counts: Int[Tensor, " width"] = torch.zeros(width, dtype=torch.int64)
        self.max: Float[Tensor, " width"] = torch.zeros(width)
        self.n_tokens = 0

    def update(self, values: Float[Tensor, " n"], indices: Int[Tensor, " n"], tokens: int) -> None:
        """Add the active entries (value > 0 counts as firing) of `tokens` more tokens."""
        fired = values > 0
        values, indices = values[fired].detach().float().cpu(), indices[fired].cpu()
        self.counts += torch.bincount(indices, minlength=len(self.counts))
        self.max.scatter_reduce_(0, indices, values, "amax")
        self.n_tokens += tokens

    @property
    def density(self) -> Float[Tensor, " width"]:
        """Share of tokens on which each feature fires."""
        return self.counts.double() / max(self.n_tokens, 1)

    @property
    def l0(self) -> float:
        """Mean number of features that fire on a token."""
        return float(self.density.sum())

    @property
    def dead_share(self) -> float:
        """Share of features that never fired on the tokens seen."""
        return float((self.counts == 0).double().mean())
