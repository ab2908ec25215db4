"""How well each feature says where each of many labels is true, for a whole dictionary at once.

Tokens come in two halves, by document: thresholds are chosen on one, figures are of the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import xlogy
from torch.nn.functional import embedding_bag

from monosemy.metrics.detection import detection

CHOSEN, REPORTED, UNKNOWN = 0, 1, -1
"""The half of a token's document, or that nothing is known of its labels."""
THRESHOLDS = 64
"""Tried for each feature: 0, and quantiles of its activations on the half to choose on."""

PRECISION, KEPT = 0.9, 0.1
"""Of a threshold for precision: the precision it must have on the half to choose on, of which some
is lost on the other, and the share of the feature's activations there that must be above it."""

_FEATURES = 64  # looked at together
_TABLE = 2**28  # numbers, at most, in a table of labels: 1 GB


@dataclass(frozen=True, slots=True)
class Detections:
    """Features as detectors of concepts by one way of choosing thresholds; all [width, concepts].

    Attributes:
        threshold: a feature is said to show a concept where its activation is above this.
        chosen: `precision`, `recall`, `f1` and `lift` on the half the threshold was chosen on.
        reported: the same on the other half; the mutual information of label and detection, `mi`,
            in bits; and the share of the feature's activations that are above the threshold,
            `kept`.
    """

    threshold: Float[np.ndarray, "width concepts"]
    chosen: dict[str, np.ndarray]
    reported: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class ConceptScores:
    """How well each feature says where each concept is true; all [width, concepts].

    Attributes:
        best: at the threshold of the best F1, the lowest of several.
        precise: at the lowest threshold of a precision of 0.9, if a tenth of the feature's
            activations are above it; NaN where there is none. A feature may be a finer part of a
            concept: its recall is low, and no F1 tells above which activation it is precise.
        auroc: on the half to report on, the chance that the activation is higher at a token with
            the label than at one without, ties counted half; 0 where the feature is silent.
    """

    best: Detections
    precise: Detections
    auroc: Float[np.ndarray, "width concepts"]


def concept_scores(
    offsets: Int[np.ndarray, " width_and_one"],
    places: Int[np.ndarray, " entries"],
    values: Float[np.ndarray, " entries"],
    labels: Bool[np.ndarray, "concepts places"],
    half: Int[np.ndarray, " places"],
) -> ConceptScores:
    """Score every feature as a detector of every concept.

    Thresholds tried, of which there are `THRESHOLDS`, are 0, so that a feature counts wherever it
    fires, and evenly spaced quantiles of its activations on the half to choose on. Of a feature
    with no more activations than that, every threshold that makes a difference is tried.

    Figures are NaN where a denominator is 0; lift is precision over base rate (`detection`).
    Memory: 1 GB for labels, and the result.

    Args:
        offsets: entries of feature f are those from offsets[f] to offsets[f + 1].
        places: where each active entry is.
        values: its activation, above 0.
        labels: whether each concept is true at each place.
        half: `CHOSEN` or `REPORTED`, the same for all places of a document; `UNKNOWN` where labels
            are not known: these places are left out.

    Raises:
        ValueError: a half has no places.
    """
    halves = [np.flatnonzero(half == part) for part in (CHOSEN, REPORTED)]
    if not all(map(len, halves)):
        raise ValueError(f"{len(halves[0])} places to choose on, {len(halves[1])} to report on")
    rows = np.full(len(half), -1, dtype=np.int32)
    rows[np.concatenate(halves)] = np.arange(sum(map(len, halves)))
    edges = offsets.tolist()
    block = max(_TABLE // sum(map(len, halves)), 1)
    blocks = []
    for some in np.split(labels, range(block, len(labels), block)):
        table = _table(some, halves)
        parts = []
        for first in range(0, len(edges) - 1, _FEATURES):
            entries = itertools.starmap(slice, itertools.pairwise(edges[first:][: _FEATURES + 1]))
            features = [_ascending(values[e], rows[places[e]], table) for e in entries]
            parts.append(_score(features, table))
        blocks.append(_join(parts, axis=0))
    return _join(blocks, axis=1)


class _Table(NamedTuple):
    """Labels of places, those to choose on first."""

    labels: torch.Tensor
    """[places, concepts] 0 or 1."""
    places: list[int]
    """In each half."""
    positives: list[np.ndarray]
    """In each half [concepts], where each concept is true."""


def _table(labels: np.ndarray, halves: list[np.ndarray]) -> _Table:
    table = torch.empty(sum(map(len, halves)), len(labels))
    for part, at in zip(table.split(list(map(len, halves))), halves, strict=True):
        part.copy_(torch.from_numpy(labels[:, at].T))
    return _Table(table, list(map(len, halves)), [labels[:, at].sum(1) for at in halves])


class _Feature(NamedTuple):
    """Entries of one feature, in each half by ascending activation."""

    thresholds: np.ndarray
    rows: list[np.ndarray]
    """Of the table of labels."""
    above: list[np.ndarray]
    """[thresholds] the first entry above each threshold."""
    ranks: np.ndarray
    """Of entries of the half to report on, from 1; the mean of those that are tied."""


def _ascending(values: np.ndarray, rows: np.ndarray, table: _Table) -> _Feature:
    ascending, sorted_rows = [], []
    for low, high in ((0, table.places[0]), (table.places[0], len(table.labels))):
        mine = np.flatnonzero((rows >= low) & (rows < high))
        mine = mine[np.argsort(values[mine])]
        ascending.append(values[mine])
        sorted_rows.append(rows[mine])
    thresholds = _thresholds(ascending[0])
    above = [np.searchsorted(v, thresholds, side="right").astype(np.int32) for v in ascending]
    return _Feature(thresholds, sorted_rows, above, _midranks(ascending[1]))


def _thresholds(ascending: np.ndarray) -> np.ndarray:
    found = np.zeros(THRESHOLDS, dtype=np.float32)
    if len(ascending):
        # Rounded up, so that no more than THRESHOLDS activations give every one but the highest.
        below = -(-len(ascending) * np.arange(1, THRESHOLDS) // THRESHOLDS)
        found[1:] = ascending[below - 1]
    return found


def _midranks(ascending: np.ndarray) -> np.ndarray:
    edges = np.flatnonzero(np.diff(ascending, prepend=-np.inf, append=np.inf))
    ties = np.diff(edges)
    return np.repeat(edges[:-1] + (ties + 1) / 2, ties).astype(np.float32)


def _score(features: Sequence[_Feature], table: _Table) -> ConceptScores:
    hits, fired = zip(*(_counts(features, table, half) for half in (0, 1)), strict=True)
    thresholds = np.stack([f.thresholds for f in features])[:, :, None]

    def at(choice: np.ndarray) -> Detections:
        def take(a: np.ndarray) -> np.ndarray:
            return np.take_along_axis(a, choice[:, None], 1)[:, 0]

        figures = [
            detection(take(h), take(f), positives, np.array(n))
            for h, f, positives, n in zip(hits, fired, table.positives, table.places, strict=True)
        ]
        for found in figures:
            del found["density"]  # the base rate, the same for all features
        counts = take(hits[1]), take(fired[1]), table.positives[1]
        figures[1]["mi"] = mutual_information(*counts, table.places[1])
        figures[1]["kept"] = counts[1] / np.maximum(fired[1][:, 0], 1)
        return Detections(take(thresholds), *figures)

    best = at((2 * hits[0] / np.maximum(fired[0] + table.positives[0], 1)).argmax(1))
    enough = (hits[0] >= PRECISION * fired[0]) & (fired[0] >= KEPT * fired[0][:, :1])
    enough &= fired[0] > 0
    precise = at(enough.argmax(1))
    for a in (precise.threshold, *precise.chosen.values(), *precise.reported.values()):
        a[~enough.any(1)] = np.nan
    ranks = _sums(features, table, 1, np.concatenate([f.ranks for f in features])).sum(1)
    firings = hits[1][:, 0], fired[1][:, 0]
    auroc = auroc_of_ranks(ranks, *firings, table.positives[1], table.places[1])
    return ConceptScores(best, precise, auroc)


def _counts(
    features: Sequence[_Feature], table: _Table, half: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries above each threshold where concepts are true, and all of them.

    [features, thresholds, concepts] and [features, thresholds, 1].
    """
    between = _sums(features, table, half)
    hits = between[:, ::-1].cumsum(1)[:, ::-1]
    fired = [len(f.rows[half]) - f.above[half] for f in features]
    return hits, np.stack(fired)[:, :, None]


def _sums(
    features: Sequence[_Feature], table: _Table, half: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return sums of labels over the entries between thresholds.

    [features, thresholds, concepts]; exact in fp32 up to 2^24 entries between two.
    """
    sizes = [len(f.rows[half]) for f in features]
    first = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
    bags = np.concatenate([f.above[half] + i for f, i in zip(features, first, strict=True)])
    rows = np.concatenate([f.rows[half] for f in features])
    sums = embedding_bag(
        torch.from_numpy(rows),
        table.labels,
        torch.from_numpy(bags),
        mode="sum",
        per_sample_weights=None if weights is None else torch.from_numpy(weights),
    )
    return sums.double().numpy().reshape(len(features), THRESHOLDS, -1)


def _join(parts: list[ConceptScores], axis: int) -> ConceptScores:
    def figures(some: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: joined([f[name] for f in some]) for name in some[0]}

    def detections(some: list[Detections]) -> Detections:
        return Detections(
            joined([d.threshold for d in some]),
            figures([d.chosen for d in some]),
            figures([d.reported for d in some]),
        )

    def joined(some: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(some, axis, dtype=np.float32)

    return ConceptScores(
        detections([p.best for p in parts]),
        detections([p.precise for p in parts]),
        joined([p.auroc for p in parts]),
    )


def auroc_of_ranks(
    ranks: np.ndarray, hits: np.ndarray, fired: np.ndarray, positives: np.ndarray, n: int
) -> np.ndarray:
    """Return the chance that a positive has the higher activation, ties counted half; any shape.

    From the rank sum (Mann and Whitney 1947). NaN where there are no positives or nothing else.

    Args:
        ranks: sum, over positives on which the feature fires, of the rank of their activation
            among all that fire, from 1; the mean of those that are tied.
        hits: how many they are.
        fired: how many fire.
        positives: how many positives there are.
        n: examples; those that do not fire are tied below all others.
    """
    silent = n - fired
    total = ranks + hits * silent + (positives - hits) * (silent + 1) / 2
    pairs = np.where((positives > 0) & (positives < n), positives * (n - positives), np.nan)
    return (total - positives * (positives + 1) / 2) / pairs


def mutual_information(
    hits: np.ndarray, predicted: np.ndarray, positives: np.ndarray, n: int
) -> np.ndarray:
    """Return the mutual information of two yes-or-no values in bits, from counts; any shape.

    The plug-in estimate: by chance alone about 1 / (2 n ln 2), less than a millionth for n of a
    million.

    Args:
        hits: examples with both.
        predicted: with the first.
        positives: with the second.
        n: all examples.
    """
    total = 0.0
    for first, in_first in ((hits, predicted), (positives - hits, n - predicted)):
        for both, in_second in ((first, positives), (in_first - first, n - positives)):
            expected = in_first * in_second / n
            total = total + xlogy(both, both / np.where(both > 0, expected, 1))
    return total / n / np.log(2)


def documents_agree(
    hits: Float[np.ndarray, " documents"],
    predicted: Float[np.ndarray, " documents"],
    positives: Float[np.ndarray, " documents"],
    tokens: Float[np.ndarray, " documents"],
) -> float:
    """Return how likely, at most, a feature goes with a concept so well by luck.

    The unit is the document, since tokens of one depend on each other. Each adds u, the mean over
    its tokens of (fires - fires on average) (has the label - has it on average), on a scale that
    its own rates f and h and the average ones make: u / sqrt((f + mean f) (h + mean h)), so that
    no document outweighs others for having more of both. If feature and concept have nothing to do
    with each other, that is as likely below 0 as above, and z = sum / root of the sum of squares
    reaches a given z > 0 with a chance of exp(-z^2 / 2) at most, however few the documents (Efron
    1969, "Student's t-test under symmetry conditions"). z is at most the root of their number: what
    is seen in a few is never sure.

    Args:
        hits: tokens of each document on which the feature fires and that have the label.
        predicted: tokens on which the feature fires.
        positives: tokens with the label.
        tokens: all tokens, above 0.
    """
    both, fires, has = hits / tokens, predicted / tokens, positives / tokens
    f, h = fires.mean(), has.mean()
    if f == 0 or h == 0:
        return 1.0
    u = (both - h * fires - f * has + f * h) / np.sqrt((fires + f) * (has + h))
    z = u.sum() / np.sqrt((u**2).sum())
    return float(np.exp(-(z**2) / 2)) if z > 0 else 1.0
