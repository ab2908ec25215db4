"""Figures of features as detectors of concepts are those of plain definitions."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from monosemy.metrics import concepts
from monosemy.metrics.concepts import (
    CHOSEN,
    KEPT,
    PRECISION,
    REPORTED,
    THRESHOLDS,
    UNKNOWN,
    ConceptScores,
    concept_scores,
    documents_agree,
    mutual_information,
)


class Case(NamedTuple):
    z: np.ndarray
    """[width, places], 0 where silent."""
    labels: np.ndarray
    half: np.ndarray


def score(case: Case) -> ConceptScores:
    feature, place = np.nonzero(case.z)
    offsets = np.searchsorted(feature, np.arange(len(case.z) + 1))
    values = case.z[feature, place].astype(np.float32)
    return concept_scores(offsets, place.astype(np.int32), values, case.labels, case.half)


def random_case(seed: int, width: int, n_concepts: int, places: int, levels: int) -> Case:
    """Activations of few levels, so that there are ties, and all three kinds of places."""
    rng = np.random.default_rng(seed)
    z = rng.integers(1, levels + 1, (width, places)) * (rng.random((width, places)) < 0.4) / 4
    half = rng.choice([CHOSEN, REPORTED, UNKNOWN], places, p=[0.4, 0.4, 0.2]).astype(np.int8)
    half[:2] = CHOSEN, REPORTED
    return Case(z.astype(np.float32), rng.random((n_concepts, places)) < 0.3, half)


def assert_equal(a: ConceptScores, b: ConceptScores) -> None:
    np.testing.assert_allclose(a.auroc, b.auroc, rtol=1e-5)
    for one, two in ((a.best, b.best), (a.precise, b.precise)):
        np.testing.assert_array_equal(one.threshold, two.threshold)
        for mine, other in ((one.chosen, two.chosen), (one.reported, two.reported)):
            assert mine.keys() == other.keys()
            for name in mine:
                np.testing.assert_allclose(mine[name], other[name], rtol=1e-5, atol=1e-7)


def test_mutual_information() -> None:
    hits, predicted, positives = np.array(
        [(50, 50, 50), (25, 50, 50), (5, 10, 5), (0, 0, 50)], dtype=float
    ).T
    bits = mutual_information(hits, predicted, positives, 100)
    np.testing.assert_allclose(bits, [1, 0, 0.186397, 0], atol=1e-6)


def f1_by_hand(y: np.ndarray, above: np.ndarray) -> float:
    return 2 * (y & above).sum() / max(y.sum() + above.sum(), 1)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(4, 60), st.integers(1, 8))
def test_against_plain_definitions(seed: int, places: int, levels: int) -> None:
    """Every threshold between activations is tried; figures are those of the other half."""
    case = random_case(seed, 2, 2, places, levels)
    found = score(case)
    chosen, other = case.half == CHOSEN, case.half == REPORTED
    for (f, z), (c, y) in itertools.product(enumerate(case.z), enumerate(case.labels)):
        tried = [0.0, *np.unique(z[chosen & (z > 0)]).tolist()]
        f1 = [f1_by_hand(y[chosen], z[chosen] > t) for t in tried]
        assert found.best.threshold[f, c] == tried[int(np.argmax(f1))]
        assert np.nan_to_num(found.best.chosen["f1"][f, c]) == pytest.approx(max(f1), abs=1e-6)
        figures = {name: a[f, c] for name, a in found.best.reported.items()}
        y, z = y[other], z[other]
        above = z > found.best.threshold[f, c]
        hits, rate = (y & above).sum(), y.mean()
        with np.errstate(invalid="ignore"):
            by_hand = {
                "precision": hits / above.sum(),
                "recall": hits / y.sum(),
                "f1": f1_by_hand(y, above) if above.any() or y.any() else np.nan,
                "lift": hits / above.sum() / rate,
            }
        for name, value in by_hand.items():
            np.testing.assert_allclose(figures[name], value, rtol=1e-5, atol=1e-7)
        auroc = roc_auc_score(y, z) if 0 < rate < 1 else np.nan
        np.testing.assert_allclose(found.auroc[f, c], auroc, rtol=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(20, 60))
def test_thresholds_for_precision(seed: int, places: int) -> None:
    """The lowest of those that are precise and keep enough; none: no figures."""
    case = random_case(seed, 6, 2, places, 6)
    case.labels[0] = case.z[0] + case.z[1] > 1.3  # concepts that strong activations show
    found = score(case).precise
    chosen, other = case.half == CHOSEN, case.half == REPORTED
    for (f, z), (c, y) in itertools.product(enumerate(case.z), enumerate(case.labels)):
        tried = np.array([0.0, *np.unique(z[chosen & (z > 0)])])
        above = z[chosen] > tried[:, None]
        fired, hits = above.sum(1), (above & y[chosen]).sum(1)
        enough = (fired > 0) & (hits >= PRECISION * fired) & (fired >= KEPT * fired[0])
        if not enough.any():
            assert np.isnan(found.threshold[f, c])
            assert all(np.isnan(a[f, c]) for a in found.reported.values())
            continue
        assert found.threshold[f, c] == tried[enough][0]
        above = z[other] > found.threshold[f, c]
        if above.any():
            assert found.reported["precision"][f, c] == pytest.approx(y[other][above].mean())
            kept = above.sum() / (z[other] > 0).sum()
            assert found.reported["kept"][f, c] == pytest.approx(kept)


def test_many_activations_are_cut_at_quantiles() -> None:
    rng = np.random.default_rng(0)
    z = np.where(rng.random((1, 4000)) < 0.7, rng.random((1, 4000)) + 0.1, 0).astype(np.float32)
    labels = np.stack([z[0] > 0, z[0] > 0.8])
    half = np.repeat([CHOSEN, REPORTED], 2000).astype(np.int8)
    found = score(Case(z, labels, half))
    # Firing at all is tried: else the first concept would lose a 64th of its tokens.
    assert found.best.threshold[0, 0] == 0
    assert found.best.reported["f1"][0, 0] == 1
    active = np.sort(z[0, :2000][z[0, :2000] > 0])
    tried = active[np.ceil(len(active) * np.arange(1, 64) / 64).astype(int) - 1]
    f1 = [f1_by_hand(labels[1, :2000], z[0, :2000] > t) for t in tried]
    assert THRESHOLDS == 64 < len(active)
    assert found.best.threshold[0, 1] == tried[np.argmax(f1)]
    assert found.best.reported["f1"][0, 1] > 0.95
    for concept, y in enumerate(labels[:, half == REPORTED]):
        auroc = roc_auc_score(y, z[0, half == REPORTED])
        assert found.auroc[0, concept] == pytest.approx(auroc, abs=1e-6)


def test_a_feature_that_is_the_concept() -> None:
    case = random_case(1, 4, 3, 300, 3)
    case.z[2] = case.labels[1] * 1.5
    found = score(case)
    figures = {name: float(a[2, 1]) for name, a in found.best.reported.items()}
    rate = case.labels[1, case.half == REPORTED].mean()
    entropy = -(rate * np.log2(rate) + (1 - rate) * np.log2(1 - rate))
    for name in ("precision", "recall", "f1", "kept"):
        assert figures[name] == found.precise.reported[name][2, 1] == 1
    assert found.auroc[2, 1] == 1
    assert figures["lift"] == pytest.approx(1 / rate)
    assert figures["mi"] == pytest.approx(entropy, rel=1e-5)


def test_a_silent_feature() -> None:
    case = random_case(2, 2, 2, 100, 3)
    case.z[0] = 0
    found = score(case)
    reported = found.best.reported
    np.testing.assert_allclose(found.auroc[0], 0.5)
    assert np.isnan(found.precise.threshold[0]).all()
    np.testing.assert_array_equal(reported["f1"][0], 0)
    np.testing.assert_array_equal(reported["mi"][0], 0)
    assert np.isnan(reported["precision"][0]).all()


def test_halves_are_kept_apart() -> None:
    """What a feature does on one half says nothing of the figures of the other."""
    case = random_case(3, 1, 1, 4000, 5)
    case.z[0, case.half == CHOSEN] = case.labels[0, case.half == CHOSEN]
    found = score(case)
    assert found.best.chosen["f1"][0, 0] == 1
    assert found.best.reported["f1"][0, 0] < 0.5
    assert found.auroc[0, 0] == pytest.approx(0.5, abs=0.05)
    flipped = case.labels.copy()
    flipped[:, case.half == UNKNOWN] ^= True
    assert_equal(found, score(case._replace(labels=flipped)))
    flipped[:, case.half == REPORTED] ^= True
    np.testing.assert_array_equal(
        found.best.threshold, score(case._replace(labels=flipped)).best.threshold
    )


def test_bounds_of_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(4, 11, 5, 200, 4)
    whole = score(case)
    monkeypatch.setattr(concepts, "_FEATURES", 3)
    monkeypatch.setattr(concepts, "_TABLE", 400)
    assert_equal(whole, score(case))


def test_both_halves_are_needed() -> None:
    case = random_case(5, 2, 2, 20, 2)
    case.half[case.half == REPORTED] = UNKNOWN
    with pytest.raises(ValueError, match="0 to report on"):
        score(case)


def test_agreement_of_documents() -> None:
    """Certainty comes from documents, not tokens: one that repeats itself counts once."""
    tokens = np.full(40, 1000.0)
    once = np.zeros(40)
    once[0] = 500
    assert documents_agree(once, once, once, tokens) > 0.3
    many = np.full(40, 10.0)
    assert documents_agree(many, many, many, tokens) == pytest.approx(np.exp(-20), rel=1e-3)
    assert documents_agree(np.zeros(40), many, many, tokens) == 1
    assert documents_agree(np.zeros(40), np.zeros(40), many, tokens) == 1


def test_agreement_by_luck_is_no_rarer_than_said() -> None:
    """Firings and labels come in runs within documents, and have nothing to do with each other."""
    rng = np.random.default_rng(0)

    def rates() -> np.ndarray:
        return rng.gamma(0.3, 0.1, 30).clip(0, 0.9)

    found = []
    for _ in range(800):
        fires, has = (np.repeat(rng.random((30, 40)) < rates()[:, None], 25, 1) for _ in "ab")
        counts = (a.sum(1).astype(float) for a in (fires & has, fires, has))
        found.append(documents_agree(*counts, np.full(30, 1000.0)))
    for level in (0.05, 0.01):
        assert np.mean(np.array(found) <= level) <= level
