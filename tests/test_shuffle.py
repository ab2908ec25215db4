from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosemy.activations import Activations, ShufflePool, Statistics
from monosemy.activations.statistics import RIDGE
from monosemy.errors import UserError


class Numbers:
    """Rows 0, 1, 2, ... in pieces of uneven sizes, at two hook points."""

    def __init__(self, n: int, piece: int = 37) -> None:
        self.n, self.piece = n, piece

    def __iter__(self) -> Iterator[Activations]:
        for part in torch.arange(self.n).float().split(self.piece):
            yield {"a": part[:, None].expand(-1, 3), "b": -part[:, None]}


@settings(max_examples=25)
@given(n=st.integers(50, 900), size=st.integers(1, 300), piece=st.integers(1, 120))
def test_every_row_is_served_once(n: int, size: int, piece: int) -> None:
    served = torch.cat(
        [b["a"][:, 0] for b in ShufflePool(Numbers(n, piece), size=size, batch_size=16)]
    )
    assert len(served) == n // 16 * 16
    assert sorted(served.tolist()) == list(range(n // 16 * 16))


def test_hook_points_stay_aligned() -> None:
    for batch in ShufflePool(Numbers(500), size=100, batch_size=10):
        assert torch.equal(batch["a"][:, 0], -batch["b"][:, 0])


def test_the_same_seed_gives_the_same_batches() -> None:
    def served(seed: int) -> list[float]:
        pool = ShufflePool(Numbers(2000), size=500, batch_size=50, seed=seed)
        return torch.cat([b["a"][:, 0] for b in pool]).tolist()

    assert served(1) == served(1)
    assert served(1) != served(2)


def test_a_batch_mixes_the_whole_pool() -> None:
    """Neighbours in a batch are as far apart as a uniform draw from the pool would have them."""
    pool = ShufflePool(Numbers(20_000), size=4000, batch_size=100)
    distances, correlations = [], []
    for step, batch in enumerate(pool):
        if 20 < step < 150:
            x = batch["a"][:, 0]
            distances.append(x.diff().abs().median())
            correlations.append(torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1])
    assert torch.stack(distances).mean() > 1000
    assert torch.stack(correlations).mean().abs() < 0.03


def test_too_little_text_for_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match="fewer than 64 tokens"):
        list(ShufflePool(Numbers(63), size=100, batch_size=64))


def test_statistics_centre_and_scale() -> None:
    x = torch.randn(5000, 16) * 3 + 40
    statistics = Statistics.of(x.split(700))
    y = statistics.apply(x)
    assert y.mean(0).abs().max() < 1e-3
    assert y.norm(dim=1).mean() == pytest.approx(4.0, rel=1e-3)
    assert statistics.offset == pytest.approx(40 / 3, rel=0.05)


def test_whitening_leaves_no_correlations_and_can_be_undone() -> None:
    mixing = torch.randn(16, 16)
    x = torch.randn(8000, 16) @ mixing + 5
    statistics = Statistics.of(x.split(700), whiten=True)
    y = statistics.apply(x).double()
    torch.testing.assert_close(statistics.undo(y.float()), x, atol=1e-3, rtol=1e-3)
    assert y.norm(dim=1).mean() == pytest.approx(4.0, rel=1e-3)
    covariance = torch.cov(y.T)
    before = torch.linalg.eigvalsh(torch.cov(x.T.double()))
    expected = before / (before + statistics_ridge(before))
    expected *= covariance.trace() / expected.sum()
    torch.testing.assert_close(
        torch.linalg.eigvalsh(covariance), expected.sort().values, rtol=1e-2, atol=1e-3
    )
    # Symmetric: as near to the identity, up to scale, as whitening can be.
    torch.testing.assert_close(statistics.whiten, statistics.whiten.T)


def statistics_ridge(variances: torch.Tensor) -> torch.Tensor:
    return RIDGE * variances.mean()


def test_a_direction_without_variance_is_not_made_loud() -> None:
    x = torch.randn(4000, 8)
    x[:, 3] = 2.0
    statistics = Statistics.of([x], whiten=True)
    y = statistics.apply(x)
    assert y.isfinite().all()
    assert y[:, 3].abs().max() < 1e-3
