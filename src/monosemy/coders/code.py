"""A sparse code: which features fire on each token, and how much.

One layout (CSR) serves a fixed number of features a token, a number shared by a batch, and
thresholds alike. Decoding touches active entries only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.coders.support import SparseSupport

_DENSE_ABOVE = 0.1
"""Share of active entries from which a dense product decodes faster than a sparse one."""


@dataclass(frozen=True, slots=True)
class Code:
    """The active entries of a [tokens, width] matrix of feature activations, row by row."""

    values: Float[Tensor, " n"]
    support: SparseSupport

    @classmethod
    def from_topk(
        cls, values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], width: int
    ) -> Code:
        """Make a code of exactly k entries a token; entries may be zero."""
        return cls(values.reshape(-1), SparseSupport.from_rows(indices, width))

    @classmethod
    def from_mask(
        cls, values: Float[Tensor, "tokens width"], mask: Bool[Tensor, "tokens width"]
    ) -> Code:
        """Keep the entries of a dense matrix where `mask` is true."""
        tokens, features = mask.nonzero(as_tuple=True)
        support = SparseSupport.from_places(tokens, features, *values.shape)
        return cls(values[tokens, features], support)

    @property
    def indices(self) -> Int[Tensor, " n"]:
        """The feature of each entry."""
        return self.support.indices

    @property
    def offsets(self) -> Int[Tensor, " tokens_plus_1"]:
        """Entries of token t are those from offsets[t] to offsets[t+1]."""
        return self.support.offsets

    @property
    def tokens(self) -> Int[Tensor, " n"]:
        """The row of each entry."""
        return self.support.tokens

    @property
    def width(self) -> int:
        """Number of features."""
        return self.support.width

    @property
    def l0(self) -> Int[Tensor, " tokens"]:
        """Number of entries above zero in each row."""
        fired = (self.values > 0).long()
        zeros = fired.new_zeros(self.support.n_tokens)
        return zeros.index_add(0, self.tokens, fired)

    def dense(self) -> Float[Tensor, "tokens width"]:
        """Return the whole matrix."""
        return self.support.dense(self.values)

    def columns(self, features: Sequence[int]) -> Float[Tensor, "tokens features"]:
        """Return the activations of some features, dense; gradients flow."""
        place = torch.full((self.width,), -1, device=self.indices.device)
        place[features] = torch.arange(len(features), device=place.device)
        column = place[self.indices]
        there = column >= 0
        zeros = self.values.new_zeros(self.support.n_tokens, len(features))
        return zeros.index_put((self.tokens[there], column[there]), self.values[there])

    def decode(self, W_dec: Float[Tensor, "width d"]) -> Float[Tensor, "tokens d"]:
        """Return the sum of each token's features' directions, times their activations."""
        if len(self.values) > _DENSE_ABOVE * self.support.n_tokens * self.width:
            return self.dense() @ W_dec
        return self.support.decode(self.values, W_dec)
