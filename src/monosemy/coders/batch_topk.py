"""BatchTopK: the largest pre-activations of a whole batch (Bussmann et al. 2024, 2412.06410)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder, check_k
from monosemy.coders.select import Choice, Scorer


class BatchTopK(SparseCoder):
    """In training the tokens x k largest entries of a batch fire; afterwards those above a bar.

    The bar (`threshold`) is one number for all features, so that a token's code depends on that
    token alone; after whitening, what is held against it is weighed by `importance`. Training ends
    by setting it so that k features a token fire on a sample.
    """

    architecture = "batch_topk"
    has_k = True

    threshold: Float[Tensor, ""]

    def __init__(self, d_in: int, width: int, *, k: int = 32, **common: Any) -> None:
        """Let k features a token fire on average."""
        super().__init__(d_in, width, **common)
        self.k = check_k(k, width)
        self.register_buffer("threshold", torch.zeros(()))

    def options(self) -> dict[str, Any]:
        """Return k."""
        return {**super().options(), "k": self.k}

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep the positive entries that reach the threshold."""
        compared = pre if self.importance is None else pre * self.importance
        bar = self.threshold.clamp_min(torch.finfo(pre.dtype).tiny)  # so that one comparison does
        return Code.from_mask(pre, compared >= bar)

    def choose(self, x: Float[Tensor, "tokens d_in"], scorer: Scorer) -> Choice:
        """Choose the tokens x k largest of the batch."""
        return scorer.batch_topk(x, self.W_enc, self.b_enc, len(x) * self.k, self.scale())

    @torch.no_grad()
    def set_threshold(self, batches: Iterable[Float[Tensor, "_ d_in"]]) -> None:
        """Set the bar at which k features a token fire, a mean over sample batches.

        On a batch it lies half way between the last score that fires and the first that does not,
        so that rounding decides nothing. Free norms have to be folded before.
        """
        scorer = Scorer(self.W_enc.device, dtype=self.W_enc.dtype)
        bars = []
        for x in batches:
            count = len(x) * self.k + 1
            _, scores = scorer.batch_topk(x, self.W_enc, self.b_enc, count)
            enough = len(scores) == count > 1
            ends = scores.topk(2, largest=False).values if enough else scores.new_zeros(1)
            bars.append(ends.mean())
        self.threshold.copy_(torch.stack(bars).mean())

    @torch.no_grad()
    def scale_features(self, factor: Float[Tensor, " width"] | Float[Tensor, ""]) -> None:
        """Scale the threshold too, which is one for all; by norms that differ, `importance`."""
        super().scale_features(factor)
        if factor.ndim == 0:
            self.threshold.mul_(factor)
