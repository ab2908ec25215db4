"""Statistics of paired differences: known answers, and what must not change them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from monosemy.metrics.paired import (
    EXACT,
    SignedRanks,
    benjamini_hochberg,
    cohen_dz,
    halves,
    max_t,
    random_flips,
    steadiest,
    wilcoxon,
    wins,
)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


@pytest.mark.parametrize(
    ("d", "p", "effect"),
    [((1, 2, 3, 4, 5, 6), 0.03125, 1.0), ((1, 2, 3, 4, 5, -6), 0.4375, 3 / 7)],
)
def test_known_answers(d: tuple[int, ...], p: float, effect: float) -> None:
    assert wilcoxon(column(*d))[0] == pytest.approx(p)
    assert SignedRanks.of(column(*d)).effect()[0, 0] == pytest.approx(effect)
    # Swapping the texts of all pairs turns the effect, and changes nothing else.
    assert wilcoxon(-column(*d))[0] == pytest.approx(p)
    assert SignedRanks.of(-column(*d)).effect()[0, 0] == pytest.approx(-effect)


@pytest.mark.parametrize("n", [5, 12, EXACT])
def test_without_ties_p_is_scipys(n: int) -> None:
    d = np.random.default_rng(n).normal(0.3, 1, (n, 7))
    assert wilcoxon(d) == pytest.approx(stats.wilcoxon(d, axis=0, method="exact").pvalue)


def test_of_many_pairs_p_is_that_of_the_normal_distribution() -> None:
    d = np.random.default_rng(0).normal(0.1, 1, (80, 5))
    assert wilcoxon(d) == pytest.approx(stats.wilcoxon(d, axis=0, method="asymptotic").pvalue)


@settings(max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_with_ties_and_zeros_p_counts_every_assignment_of_signs(d: list[int]) -> None:
    x = np.array([v for v in d if v], dtype=float)
    p = wilcoxon(column(*d))[0]
    if not len(x):
        assert p == 1 and np.isnan(SignedRanks.of(column(*d)).effect()[0, 0])
        return
    ranks = stats.rankdata(np.abs(x))
    signs = np.array(list(itertools.product([-1, 1], repeat=len(x))))
    seen = abs((np.sign(x) * ranks).sum())
    assert p == pytest.approx((np.abs(signs @ ranks) >= seen - 1e-9).mean())


def test_five_pairs_can_never_be_significant() -> None:
    assert wilcoxon(column(1, 2, 3, 4, 5))[0] == pytest.approx(2 / 2**5)


def test_adjusted_p_values() -> None:
    assert benjamini_hochberg(np.arange(1, 6) / 100) == pytest.approx([0.05] * 5)
    p = np.array([0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205, 0.212, 0.216])
    q = benjamini_hochberg(p)
    assert q[:3] == pytest.approx([0.01, 0.04, 0.084]) and (q <= 0.05).sum() == 2
    order = np.random.default_rng(0).permutation(10)
    assert benjamini_hochberg(p[order]) == pytest.approx(q[order])
    assert q == pytest.approx(stats.false_discovery_control(p))


def test_d_z() -> None:
    assert cohen_dz(column(1, 2, 3))[0] == pytest.approx(2.0)
    assert cohen_dz(column(0, 0))[0] == 0 and cohen_dz(column(1, 1))[0] == np.inf


def test_ties_are_half_a_win() -> None:
    assert wins(column(2, 0, -1, 3)).mean() == pytest.approx(0.625)


def test_the_steadiest_feature_is_the_one_most_often_right() -> None:
    d = np.array([[1, 1, -9], [1, 1, 1], [1, 2, 2], [-5, 1, 3]], dtype=float)
    assert steadiest(d) == 1
    assert steadiest(-d) == 1
    assert steadiest(np.array([[1.0, 1.0], [9.0, 1.1]])) == 1


def test_max_t_finds_what_is_there_and_no_more() -> None:
    rng = np.random.default_rng(0)
    d = rng.normal(size=(40, 200))
    groups = np.arange(40)
    flips = random_flips(groups, 200)
    assert max_t(d, flips).min() > 0.05
    d[:, 3] += 1.5
    p = max_t(d, flips)
    assert p[3] == pytest.approx(1 / 201) and (p <= 0.05).sum() == 1


def test_pairs_of_a_group_are_turned_together() -> None:
    groups = np.array([0, 1, 1, 2, 0])
    flips = random_flips(groups, 50, seed=1)
    assert (flips[:, 1] == flips[:, 2]).all() and (flips[:, 0] == flips[:, 4]).all()
    assert {*flips.ravel().tolist()} == {-1.0, 1.0}
    assert (flips[:, 0] != flips[:, 3]).any()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=2, max_size=40))
def test_halves_share_no_group(pairs: list[tuple[int, int]]) -> None:
    groups, kinds = np.array(pairs).T
    first = halves(groups, kinds)
    assert not {*groups[first].tolist()} & {*groups[~first].tolist()}
    if len({*groups.tolist()}) > 1:
        assert first.any() and not first.all()


def test_halves_are_alike_in_every_kind() -> None:
    rng = np.random.default_rng(0)
    groups, kinds = rng.integers(0, 60, 600), rng.integers(0, 8, 600)
    first = halves(groups, kinds)
    shares = [first[kinds == kind].mean() for kind in range(8)]
    assert min(shares) > 0.4 and max(shares) < 0.6
