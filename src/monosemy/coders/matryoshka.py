"""Matryoshka BatchTopK: the first features alone must explain too.

Bussmann et al. 2025, arXiv 2503.17547.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders.batch_topk import BatchTopK
from monosemy.coders.coder import TrainingCode, mean_square
from monosemy.coders.support import SparseSupport
from monosemy.errors import UserError

SHARES = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)
"""Nested widths, in shares of the whole."""


class MatryoshkaBatchTopK(BatchTopK):
    """BatchTopK whose error is the mean over nested prefixes of the dictionary.

    The code is chosen once, over all features; each prefix decodes the part of it that lies
    among its features, with `b_dec`. General features gather in the first prefixes.
    """

    architecture = "matryoshka"

    def __init__(
        self, d_in: int, width: int, *, prefixes: Sequence[int] | None = None, **common: Any
    ) -> None:
        """Nest prefixes, given as rising widths of which the last is the whole.

        Raises:
            UserError: they do not rise, or do not end at the width.
        """
        super().__init__(d_in, width, **common)
        given = prefixes or sorted({max(round(share * width), 1) for share in SHARES})
        self.prefixes = [int(prefix) for prefix in given]
        rises = all(a < b for a, b in itertools.pairwise([0, *self.prefixes]))
        if not rises or self.prefixes[-1] != width:
            raise UserError(
                f"prefixes are {self.prefixes}", f"they must rise and end at the width, {width}"
            )

    def options(self) -> dict[str, Any]:
        """Return k and the prefixes."""
        return {**super().options(), "prefixes": self.prefixes}

    def error(
        self, code: TrainingCode, rest: Float[Tensor, "tokens d_out"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "tokens d_out"]]:
        """Return the mean error over prefixes, and what the whole leaves over.

        Each feature is decoded once, with the others of its ring: prefixes are sums of rings.
        """
        left, errors = rest, []
        for ring in self._rings(code):
            left = left - ring
            errors.append(mean_square(left))
        return torch.stack(errors).mean(), left

    def _rings(self, code: TrainingCode) -> list[Tensor]:
        """Return what the features between one prefix and the next decode to."""
        support = code.support
        assert isinstance(support, SparseSupport)
        ends = torch.tensor(self.prefixes[:-1], device=code.values.device)
        ring = torch.bucketize(support.indices, ends, right=True)
        rings = []
        for number in range(len(self.prefixes)):
            chosen = ring == number
            part = support.subset(chosen)
            rings.append(part.decode(code.values[chosen], self.W_dec))
        return rings
