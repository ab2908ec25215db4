"""A sparse code: which features fire on each token, and how much.

One layout (CSR) serves a fixed number of features a token, a number shared by a batch, and
thresholds alike. Decoding touches active entries only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

_DENSE_ABOVE = 0.1
"""Share of active entries from which a dense product decodes faster than a sparse one."""


@dataclass(frozen=True, slots=True)
class Code:
    """The active entries of a [tokens, width] matrix of feature activations, row by row."""

    values: Float[Tensor, " n"]
    indices: Int[Tensor, " n"]
    """The feature of each entry."""
    offsets: Int[Tensor, " tokens_plus_1"]
    """Entries of token t are those from offsets[t] to offsets[t+1]."""
    width: int

    @classmethod
    def from_topk(
        cls, values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], width: int
    ) -> Code:
        """Make a code of exactly k entries a token; entries may be zero."""
        tokens, k = values.shape
        offsets = torch.arange(tokens + 1, device=values.device) * k
        return cls(values.reshape(-1), indices.reshape(-1), offsets, width)

    @classmethod
    def from_mask(
        cls, values: Float[Tensor, "tokens width"], mask: Bool[Tensor, "tokens width"]
    ) -> Code:
        """Keep the entries of a dense matrix where `mask` is true."""
        tokens, features = mask.nonzero(as_tuple=True)
        offsets = F.pad(mask.sum(1).cumsum(0), (1, 0))
        return cls(values[tokens, features], features, offsets, values.shape[1])

    @property
    def tokens(self) -> Int[Tensor, " n"]:
        """The row of each entry."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    @property
    def l0(self) -> Int[Tensor, " tokens"]:
        """Number of entries above zero in each row."""
        fired = (self.values > 0).long()
        return torch.zeros(len(self.offsets) - 1, dtype=torch.int64, device=fired.device).index_add(
            0, self.tokens, fired
        )

    def dense(self) -> Float[Tensor, "tokens width"]:
        """Return the whole matrix."""
        shape = len(self.offsets) - 1, self.width
        zeros = torch.zeros(shape, dtype=self.values.dtype, device=self.values.device)
        return zeros.index_put((self.tokens, self.indices), self.values)

    def decode(self, W_dec: Float[Tensor, "width d"]) -> Float[Tensor, "tokens d"]:
        """Return the sum of each token's features' directions, times their activations."""
        n_tokens = len(self.offsets) - 1
        if len(self.values) > _DENSE_ABOVE * n_tokens * self.width:
            return self.dense() @ W_dec
        return F.embedding_bag(
            self.indices,
            W_dec,
            self.offsets,
            mode="sum",
            per_sample_weights=self.values,
            include_last_offset=True,
        )
