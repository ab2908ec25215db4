"""BatchTopK: the largest pre-activations of a whole batch (Bussmann et al. 2024, 2412.06410)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder, check_k


class BatchTopK(SparseCoder):
    """In training the tokens x k largest entries of a batch fire; afterwards those above a bar.

    The bar (`threshold`) is one number for all features, so that a token's code depends on that
    token alone. Training ends by setting it so that k features a token fire on a sample.
    """

    architecture = "batch_topk"

    threshold: Float[Tensor, ""]

    def __init__(self, d_in: int, width: int, *, k: int = 32, seed: int = 0) -> None:
        """Let k features a token fire on average."""
        super().__init__(d_in, width, seed=seed)
        self.k = check_k(k, width)
        self.register_buffer("threshold", torch.zeros(()))

    def options(self) -> dict[str, Any]:
        """Return k."""
        return {"k": self.k}

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep the positive entries that reach the threshold."""
        return Code.from_mask(pre, (pre >= self.threshold) & (pre > 0))

    def select_training(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep the tokens x k largest positive entries of the batch."""
        if not len(pre):
            return self.select(pre)
        smallest = _kth_largest(pre.detach(), len(pre) * self.k)
        return Code.from_mask(pre, (pre >= smallest) & (pre > 0))

    @torch.no_grad()
    def set_threshold(self, batches: Iterable[Float[Tensor, "tokens d_in"]]) -> None:
        """Set the bar at which k features a token fire, a mean over sample batches."""
        bars = [_kth_largest(self.pre_activations(x), len(x) * self.k) for x in batches]
        self.threshold.copy_(torch.stack(bars).mean())

    @torch.no_grad()
    def fold(self, mean: Float[Tensor, " d_in"], scale: float) -> None:
        """Fold the scale into the threshold too."""
        super().fold(mean, scale)
        self.threshold.div_(scale)


def _kth_largest(pre: Float[Tensor, "tokens width"], count: int) -> Float[Tensor, ""]:
    """Return the `count`-th largest entry of all, at least 0.

    Only entries among their own row's largest can be among the batch's; how many of each row
    are looked at doubles until no row's cut could have hidden one.
    """
    per_row = min(4 * -(-count // len(pre)), pre.shape[1])
    while True:
        rows = pre.topk(per_row, dim=1, sorted=False).values
        bar = rows.flatten().topk(count, sorted=False).values.min()
        if per_row == pre.shape[1] or rows.amin(1).max() < bar:
            return bar.clamp_min(0)
        per_row = min(2 * per_row, pre.shape[1])
