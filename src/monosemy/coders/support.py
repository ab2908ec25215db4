"""Where a code is not zero, and the products that touch those places only.

A support is the set of (token, feature) places that may be active. The values there are a separate
tensor, so that gradients flow through values while places stay constants. Training asks five
things of a support: the encoder's output at its places, the decoder's sum over them, a number of
each feature laid out along them, and sums over them by token or feature. The sparse one pays for
its places alone; the dense one, for codes in which so many features fire that plain matrix
products are faster, holds every place.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@runtime_checkable
class Support(Protocol):
    """What training needs to know of the active places of [tokens, width]."""

    n_tokens: int
    width: int

    def affine(self, x: Tensor, W: Tensor, b: Tensor | None, known: Tensor | None = None) -> Tensor:
        """Return x_t . W_i + b_i at each place, with gradients to x, W and b."""
        ...

    def decode(self, values: Tensor, W: Tensor) -> Float[Tensor, "tokens d"]:
        """Return, for each token, the sum of its places' rows of W times their values."""
        ...

    def at(self, per_feature: Float[Tensor, " width"]) -> Tensor:
        """Return each place's feature's number."""
        ...

    def per_token(self, values: Tensor) -> Float[Tensor, " tokens"]:
        """Return each token's sum of values."""
        ...

    def per_feature(self, values: Tensor) -> Float[Tensor, " width"]:
        """Return each feature's sum of values."""
        ...

    def dense(self, values: Tensor) -> Float[Tensor, "tokens width"]:
        """Return the values as a whole matrix."""
        ...


class SparseSupport:
    """Places as rows of compressed sparse rows (CSR)."""

    def __init__(
        self, indices: Int[Tensor, " n"], offsets: Int[Tensor, " tokens_plus_1"], width: int
    ) -> None:
        self.indices, self.offsets, self.width = indices, offsets, width
        self.n_tokens = len(offsets) - 1

    @classmethod
    def from_rows(cls, indices: Int[Tensor, "tokens k"], width: int) -> SparseSupport:
        """Make a support of exactly k places a token."""
        tokens, k = indices.shape
        offsets = torch.arange(tokens + 1, device=indices.device) * k
        return cls(indices.reshape(-1), offsets, width)

    @classmethod
    def from_places(
        cls, tokens: Int[Tensor, " n"], features: Int[Tensor, " n"], n_tokens: int, width: int
    ) -> SparseSupport:
        """Make a support of places listed token by token."""
        counts = torch.bincount(tokens, minlength=n_tokens)
        return cls(features, F.pad(counts.cumsum(0), (1, 0)), width)

    @cached_property
    def tokens(self) -> Int[Tensor, " n"]:
        """The token of each place."""
        counts = self.offsets.diff()
        tokens = torch.arange(self.n_tokens, device=counts.device)
        return torch.repeat_interleave(tokens, counts, output_size=len(self.indices))

    @cached_property
    def by_feature(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " width_plus_1"]]:
        """The order that sorts places by feature, and where each feature begins in it."""
        small = torch.int16 if self.width < 2**15 else torch.int32
        order = self.indices.to(small).sort(stable=True).indices
        counts = torch.bincount(self.indices, minlength=self.width)
        return order, F.pad(counts.cumsum(0), (1, 0))

    def subset(self, keep: Bool[Tensor, " n"]) -> SparseSupport:
        """Return the places where `keep` is true."""
        return SparseSupport.from_places(
            self.tokens[keep], self.indices[keep], self.n_tokens, self.width
        )

    def affine(
        self,
        x: Float[Tensor, "tokens d"],
        W: Float[Tensor, "width d"],
        b: Float[Tensor, " width"] | None,
        known: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Return x_t . W_i + b_i at each place; `known` saves computing it again."""
        return _Affine.apply(x, W, b, self, known)

    def decode(
        self, values: Float[Tensor, " n"], W: Float[Tensor, "width d"]
    ) -> Float[Tensor, "tokens d"]:
        """Return, for each token, the sum of its places' rows of W times their values."""
        return _Decode.apply(values, W, self)

    def at(self, per_feature: Float[Tensor, " width"]) -> Float[Tensor, " n"]:
        """Return each place's feature's number."""
        return per_feature.index_select(0, self.indices)

    def at_tokens(self, per_token: Tensor) -> Tensor:
        """Return each place's token's number."""
        return per_token.index_select(0, self.tokens)

    def per_token(self, values: Float[Tensor, " n"]) -> Float[Tensor, " tokens"]:
        """Return each token's sum of values."""
        return values.new_zeros(self.n_tokens).index_add(0, self.tokens, values)

    def per_feature(self, values: Float[Tensor, " n"]) -> Float[Tensor, " width"]:
        """Return each feature's sum of values."""
        return values.new_zeros(self.width).index_add(0, self.indices, values)

    def dense(self, values: Float[Tensor, " n"]) -> Float[Tensor, "tokens width"]:
        """Return the values as a whole matrix."""
        zeros = values.new_zeros(self.n_tokens, self.width)
        return zeros.index_put((self.tokens, self.indices), values)


class DenseSupport:
    """Every place of [tokens, width]; values are the matrix itself."""

    def __init__(self, n_tokens: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        self.n_tokens, self.width, self.dtype = n_tokens, width, dtype

    def affine(
        self,
        x: Float[Tensor, "tokens d"],
        W: Float[Tensor, "width d"],
        b: Float[Tensor, " width"] | None,
        known: Tensor | None = None,
    ) -> Float[Tensor, "tokens width"]:
        """Return x W^T + b, the product in `dtype`."""
        product = (x.to(self.dtype) @ W.to(self.dtype).T).to(W.dtype)
        return product if b is None else product + b

    def decode(
        self, values: Float[Tensor, "tokens width"], W: Float[Tensor, "width d"]
    ) -> Float[Tensor, "tokens d"]:
        """Return values @ W, the product in `dtype`."""
        return (values.to(self.dtype) @ W.to(self.dtype)).to(W.dtype)

    def at(self, per_feature: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
        """Return the features' numbers, which spread over tokens by themselves."""
        return per_feature

    def per_token(self, values: Float[Tensor, "tokens width"]) -> Float[Tensor, " tokens"]:
        """Return each token's sum of values."""
        return values.sum(1)

    def per_feature(self, values: Float[Tensor, "tokens width"]) -> Float[Tensor, " width"]:
        """Return each feature's sum of values."""
        return values.sum(0)

    def dense(self, values: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Return the values."""
        return values


class _Affine(torch.autograd.Function):
    """Encoder output at the places of a support."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, support: SparseSupport, known: Any
    ) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.support, ctx.has_bias = support, b is not None
        if known is not None:
            return known.clone()
        values = dot(x, W, support)
        return values if b is None else values + b[support.indices]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, W = ctx.saved_tensors
        support: SparseSupport = ctx.support
        needs_x, needs_W, needs_b = ctx.needs_input_grad[:3]
        return (
            _sum_rows(gradient, W, support) if needs_x else None,
            _sum_tokens(gradient, x, support) if needs_W else None,
            support.per_feature(gradient) if needs_b and ctx.has_bias else None,
            None,
            None,
        )


class _Decode(torch.autograd.Function):
    """Decoder sum over the places of a support."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W: Tensor, support: SparseSupport) -> Tensor:
        ctx.save_for_backward(values, W)
        ctx.support = support
        return _sum_rows(values, W, support)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        values, W = ctx.saved_tensors
        needs_values, needs_W = ctx.needs_input_grad[:2]
        return (
            dot(gradient, W, ctx.support) if needs_values else None,
            _sum_tokens(values, gradient, ctx.support) if needs_W else None,
            None,
        )


@torch.no_grad()
def dot(
    x: Float[Tensor, "tokens d"], W: Float[Tensor, "width d"], support: SparseSupport
) -> Float[Tensor, " n"]:
    """Return x_t . W_i at each place: a product of which only chosen entries are computed."""
    if x.device.type == "mps":  # lacks the kernel below
        pieces = zip(support.tokens.split(2**16), support.indices.split(2**16), strict=True)
        return torch.cat([(x[t] * W[i]).sum(1) for t, i in pieces])
    # The gradient of embedding_bag for its per-sample weights is exactly this product.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x.contiguous(), W.contiguous(), support.indices, support.offsets[:-1], support.tokens, 0, -1
    )


def _sum_rows(values: Tensor, W: Tensor, support: SparseSupport) -> Tensor:
    """Return each token's sum of rows of W times values: [tokens, d]."""
    return F.embedding_bag(
        support.indices,
        W.contiguous(),
        support.offsets,
        mode="sum",
        per_sample_weights=values,
        include_last_offset=True,
    )


def _sum_tokens(values: Tensor, x: Tensor, support: SparseSupport) -> Tensor:
    """Return each feature's sum of rows of x times values: [width, d], a weight gradient."""
    order, offsets = support.by_feature
    return F.embedding_bag(
        support.tokens[order],
        x.contiguous(),
        offsets,
        mode="sum",
        per_sample_weights=values[order],
        include_last_offset=True,
    )
