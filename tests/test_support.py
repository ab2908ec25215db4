"""The sparse products against plain matrix products: values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosemy.coders.support import DenseSupport, SparseSupport

D, WIDTH = 7, 23
DENSITIES = [0.0, 0.1, 1.0]


def places(tokens: int, density: float) -> tuple[SparseSupport, Tensor]:
    """A support of random places, and the matrix that is true there."""
    mask = torch.rand(tokens, WIDTH) < density
    return SparseSupport.from_places(*mask.nonzero(as_tuple=True), tokens, WIDTH), mask


def weights(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(tokens, D), (WIDTH, D), (WIDTH,)]
    x, W, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in shapes)
    return x, W, b


def same_gradients(one: Tensor, other: Tensor, inputs: list[Tensor]) -> None:
    """Compare gradients of a random projection of two outputs that should be equal."""
    torch.testing.assert_close(one, other)
    goal = torch.randn_like(one)
    pairs = zip(
        torch.autograd.grad((one * goal).sum(), inputs),
        torch.autograd.grad((other * goal).sum(), inputs),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tokens", [0, 1, 30])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("bias", [True, False])
def test_affine_equals_the_dense_product(tokens: int, density: float, bias: bool) -> None:
    support, mask = places(tokens, density)
    x, W, b = weights(tokens)
    sparse = support.affine(x, W, b if bias else None)
    dense = DenseSupport(tokens, WIDTH, torch.float64).affine(x, W, b if bias else None)
    same_gradients(sparse, dense[mask], [x, W, b] if bias else [x, W])


def test_affine_takes_what_is_known_and_keeps_its_gradients() -> None:
    support, mask = places(30, 0.2)
    x, W, b = weights(30)
    known = (x @ W.T + b)[mask].detach()
    same_gradients(support.affine(x, W, b, known), support.affine(x, W, b), [x, W, b])


@pytest.mark.parametrize("tokens", [0, 1, 30])
@pytest.mark.parametrize("density", DENSITIES)
def test_decode_equals_the_dense_product(tokens: int, density: float) -> None:
    support, mask = places(tokens, density)
    _, W, _ = weights(tokens)
    z = (torch.randn(tokens, WIDTH, dtype=torch.float64) * mask).requires_grad_()
    sparse = support.decode(z[mask], W)
    dense = DenseSupport(tokens, WIDTH, torch.float64).decode(z * mask, W)
    same_gradients(sparse, dense, [z, W])


@pytest.mark.parametrize("tokens", [0, 1, 30])
@pytest.mark.parametrize("density", DENSITIES)
def test_sums_and_layouts_equal_the_dense_ones(tokens: int, density: float) -> None:
    sparse, mask = places(tokens, density)
    dense = DenseSupport(tokens, WIDTH)
    z = (torch.randn(tokens, WIDTH) * mask).requires_grad_()
    b = torch.randn(WIDTH, requires_grad=True)
    same_gradients(sparse.per_token(z[mask]), dense.per_token(z * mask), [z])
    same_gradients(sparse.per_feature(z[mask]), dense.per_feature(z * mask), [z])
    same_gradients(sparse.dense(z[mask]), dense.dense(z * mask), [z])
    same_gradients(sparse.at(b), (dense.at(b) + 0 * z)[mask], [b])
    assert torch.equal(sparse.at_tokens(torch.arange(tokens)), mask.nonzero()[:, 0])


@given(
    tokens=st.integers(0, 9),
    width=st.integers(1, 300),
    seed=st.integers(0, 999),
    keep=st.floats(0, 1),
)
@settings(max_examples=40, derandomize=True)
def test_a_subset_is_the_places_kept(tokens: int, width: int, seed: int, keep: float) -> None:
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(tokens, width, generator=random) < 0.4
    kept = mask & (torch.rand(tokens, width, generator=random) < keep)
    support = SparseSupport.from_places(*mask.nonzero(as_tuple=True), tokens, width)
    part = support.subset(kept[mask])
    ones = torch.ones(len(part.indices))
    assert torch.equal(part.dense(ones).bool(), kept)
    assert torch.equal(part.per_feature(ones), kept.float().sum(0))
    assert torch.equal(part.tokens, kept.nonzero()[:, 0])
    order, offsets = part.by_feature
    assert torch.equal(part.indices[order], part.indices.sort().values)
    assert torch.equal(offsets.diff(), kept.sum(0))


def test_rows_of_equally_many_places() -> None:
    rows = torch.tensor([[3, 1], [0, 3]])
    support = SparseSupport.from_rows(rows, 5)
    assert support.tokens.tolist() == [0, 0, 1, 1]
    assert support.dense(torch.tensor([1.0, 2, 3, 4])).tolist() == [
        [0, 2, 0, 1, 0],
        [3, 0, 0, 4, 0],
    ]


def test_gradients_that_are_not_contiguous() -> None:
    """A sum's gradient is one number expanded, a transposed loss's a transposed view."""
    support, mask = places(30, 0.2)
    x, W, b = weights(30)
    pre = support.affine(x, W, b)
    expanded = torch.autograd.grad(pre.sum(), [x, W, b])
    dense = torch.autograd.grad((x @ W.T + b)[mask].sum(), [x, W, b])
    for one, other in zip(expanded, dense, strict=True):
        torch.testing.assert_close(one, other)
    values = torch.randn(len(support.indices), dtype=torch.float64, requires_grad=True)
    goal = torch.randn(D, 30, dtype=torch.float64)
    sparse = torch.autograd.grad((support.decode(values, W).T * goal).sum(), [values, W])
    dense = torch.autograd.grad((support.dense(values) @ W).T.mul(goal).sum(), [values, W])
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one, other)


def test_bf16_products_give_back_the_weights_dtype() -> None:
    x, W, b = (t.detach().float() for t in weights(5))
    support = DenseSupport(5, WIDTH, torch.bfloat16)
    pre = support.affine(x, W, b)
    assert pre.dtype == support.decode(pre, W).dtype == torch.float32
    torch.testing.assert_close(pre, x @ W.T + b, atol=0.1, rtol=0.02)
