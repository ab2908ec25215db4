"""The chosen places against those of plain, exact arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosemy.coders import select
from monosemy.coders.select import Scorer, kth_largest
from monosemy.coders.support import DenseSupport, SparseSupport

DTYPES = [torch.bfloat16, torch.float32, torch.float64]
METHODS = ["topk", "batch_topk"]


def scorer(dtype: torch.dtype) -> Scorer:
    return Scorer(torch.device("cpu"), dtype=dtype)


def problem(tokens: int, width: int, d: int = 64, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Activations of norm sqrt(d) and unit rows, as in training."""
    x = torch.nn.functional.normalize(torch.randn(tokens, d), dim=1) * d**0.5 * scale
    W = torch.nn.functional.normalize(torch.randn(width, d), dim=1)
    return x, W, torch.randn(width) * 0.1


def choose(method: str, s: Scorer, x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    """The mask of what a method chooses, checked against the scores it returns."""
    support, values = getattr(s, method)(x, W, b, k * len(x) if method == "batch_topk" else k)
    assert isinstance(support, SparseSupport)
    assert support.offsets[-1] == len(values)
    scores = support.dense(values)
    mask = support.dense(torch.ones_like(values)).bool()
    torch.testing.assert_close(scores, (x @ W.T + b) * mask, atol=1e-4, rtol=1e-5)
    return mask


def expected(method: str, x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    """The positive ones among the largest scores of each token or of all, in double precision."""
    scores = x.double() @ W.double().T + b.double()
    table = scores if method == "topk" else scores.reshape(1, -1)
    count = k if method == "topk" else min(k * len(x), scores.numel())
    chosen = torch.zeros_like(table, dtype=torch.bool)
    chosen.scatter_(1, table.topk(count, dim=1).indices, True)
    return chosen.view_as(scores) & (scores > 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("width", "k"), [(1024, 8), (1024, 128), (1024, 1), (100, 5), (40, 3), (33, 33), (1, 1)]
)
def test_the_largest_are_chosen_exactly(
    method: str, width: int, k: int, dtype: torch.dtype
) -> None:
    x, W, b = problem(200, width)
    assert torch.equal(choose(method, scorer(dtype), x, W, b, k), expected(method, x, W, b, k))


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("method", METHODS)
def test_bf16_loses_none_of_the_largest_at_other_scales(method: str, scale: float) -> None:
    """Where scores are large, bf16 numbers lie further apart than any fixed slack."""
    for k in (1, 2, 16):
        x, W, b = problem(200, 1024, scale=scale)
        mask = choose(method, scorer(torch.bfloat16), x, W, b, k)
        right = expected(method, x, W, b, k)
        assert mask.sum() == right.sum()
        assert torch.equal(mask, right)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_scaled_scores_decide_and_unscaled_ones_come_back(method: str, dtype: torch.dtype) -> None:
    """As with directions of free norms, which lie some octaves round their mean."""
    for k in (1, 4, 16):
        x, W, b = problem(200, 1024)
        scale = (torch.randn(1024) * 0.7).exp()
        scale /= scale.mean()
        count = k * len(x) if method == "batch_topk" else k
        support, values = getattr(scorer(dtype), method)(x, W, b, count, scale)
        torch.testing.assert_close(
            support.dense(values), support.dense(torch.ones_like(values)) * (x @ W.T + b)
        )
        mask = support.dense(torch.ones_like(values)).bool()
        assert torch.equal(mask, expected(method, x, W * scale[:, None], b * scale, k))


@pytest.mark.parametrize("method", METHODS)
def test_tokens_of_very_different_norms(method: str) -> None:
    x, W, b = problem(200, 512)
    x *= torch.logspace(-1, 1, 200)[torch.randperm(200), None]
    for dtype in DTYPES:
        mask = choose(method, scorer(dtype), x, W, b, 4)
        assert torch.equal(mask, expected(method, x, W, b, 4))


@given(
    tokens=st.integers(0, 12),
    width=st.integers(1, 400),
    share=st.floats(0, 1),
    shift=st.sampled_from([-30.0, -1.0, 0.0, 1.0]),
    seed=st.integers(0, 9999),
    buffer=st.sampled_from([1, 500, 2**24]),
    method=st.sampled_from(METHODS),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=100, derandomize=True)
def test_any_shape_is_chosen_exactly(
    tokens: int,
    width: int,
    share: float,
    shift: float,
    seed: int,
    buffer: int,
    method: str,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(seed)
    x, W, b = problem(tokens, width, d=16)
    k = max(round(share * width), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_BUFFER", buffer)
        mask = choose(method, scorer(dtype), x, W, b + shift, k)
    assert torch.equal(mask, expected(method, x, W, b + shift, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("buffer", [1000, 7777])
def test_pieces_change_nothing(
    buffer: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, W, b = problem(100, 320)
    x = x[x.norm(dim=1).argsort()] * torch.linspace(0.2, 3, 100)[:, None]  # pieces differ much
    whole, parts = scorer(dtype), scorer(dtype)
    low = b - 2.5
    before = [
        choose("topk", whole, x, W, b, 6),
        choose("batch_topk", whole, x, W, b, 6),
        _positive(whole, x, W, low),
    ]
    monkeypatch.setattr(select, "_BUFFER", buffer)
    after = [
        choose("topk", parts, x, W, b, 6),
        choose("batch_topk", parts, x, W, b, 6),
        _positive(parts, x, W, low),
    ]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


def _positive(s: Scorer, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """The mask of places chosen that are truly positive."""
    support = s.positive(x, W, b)
    scores = x @ W.T + b
    if isinstance(support, DenseSupport):
        return scores > 0
    assert isinstance(support, SparseSupport)
    return support.dense(torch.ones(len(support.indices))).bool() & (scores > 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1024, 100, 7])
def test_no_positive_score_is_missed_and_few_others_come_along(
    width: int, dtype: torch.dtype
) -> None:
    x, W, b = problem(300, width)
    b = b - 3
    support = scorer(dtype).positive(x, W, b)
    assert isinstance(support, SparseSupport)
    mask = support.dense(torch.ones(len(support.indices))).bool()
    scores = x.double() @ W.double().T + b.double()
    assert mask[scores > 0].all()
    assert (scores[mask] > -0.1).all()


def test_large_negative_biases_hide_no_positive_score() -> None:
    """bf16 rounds a bias of -40 by up to an eighth."""
    x, W, _ = problem(300, 500)
    scores = x @ W.T
    b = -scores.max(0).values + 0.05 - 40
    x, W = torch.cat([x, torch.ones(300, 1)], 1), torch.cat([W, torch.full((500, 1), 40.0)], 1)
    support = scorer(torch.bfloat16).positive(x, W, b)
    assert isinstance(support, SparseSupport)
    mask = support.dense(torch.ones(len(support.indices))).bool()
    assert mask[x.double() @ W.double().T + b > 0.02].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_positive_scores_make_the_support_dense(dtype: torch.dtype) -> None:
    x, W, b = problem(50, 64)
    support = scorer(dtype).positive(x, W, b)
    assert isinstance(support, DenseSupport)
    assert support.dtype == dtype


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_scores_are_no_reason_to_choose_more(method: str, dtype: torch.dtype) -> None:
    x, W, _ = problem(20, 8)
    W, b = W.repeat(10, 1), torch.zeros(80)
    k = 13 if method == "topk" else 7
    mask = choose(method, scorer(dtype), x, W, b, k)
    right = expected(method, x, W, b, k)
    assert mask.sum() == right.sum()
    scores = x @ W.T
    torch.testing.assert_close(scores[mask].sort().values, scores[right].sort().values)


@pytest.mark.parametrize("method", [*METHODS, "positive"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_nothing_is_positive_nothing_is_chosen(method: str, dtype: torch.dtype) -> None:
    x, W, b = problem(30, 256)
    s = scorer(dtype)
    support = s.positive(x, W, b - 100)
    if method != "positive":
        support, _ = getattr(s, method)(x, W, b - 100, 5)
    assert isinstance(support, SparseSupport)
    assert len(support.indices) == 0
    assert support.n_tokens == 30


def test_scores_come_from_fp32_weights_whatever_chose_them() -> None:
    x, W, b = problem(100, 512)
    _, fast = scorer(torch.bfloat16).topk(x, W, b, 8)
    support, values = scorer(torch.float32).topk(x, W, b, 8)
    assert fast.dtype == torch.float32
    truth = (x.double() @ W.double().T + b)[support.tokens, support.indices]
    torch.testing.assert_close(values.double(), truth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.sort().values, values.sort().values)


def test_one_scorer_serves_coders_of_different_shapes() -> None:
    shared = scorer(torch.bfloat16)
    for width in (64, 700, 33):
        x, W, b = problem(40, width)
        assert torch.equal(choose("topk", shared, x, W, b, 3), expected("topk", x, W, b, 3))


def test_the_kth_largest_at_its_ends() -> None:
    values = torch.tensor([3.0, 1, 2])
    assert [kth_largest(values, k).item() for k in (0, 1, 2, 3, 9)] == [3, 3, 2, 1, 1]
    assert kth_largest(torch.zeros(0), 1) == 0
