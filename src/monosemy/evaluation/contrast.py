"""Features that tell the texts of pairs apart, beside probes and baselines on the same pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse

from monosemy.coders import Dictionary
from monosemy.corpus import Pair
from monosemy.corpus.pairs import CONTROL
from monosemy.evaluation.result import SuiteResult, Table, cells, judge, told
from monosemy.interpret.contrast import (
    ALL,
    FEWEST,
    Contrast,
    FeatureContrast,
    PairSet,
    Q,
    contrast_features,
    prepare_pairs,
)
from monosemy.interpret.pooled import POOLINGS
from monosemy.lm import LM
from monosemy.metrics import bootstrap_weights
from monosemy.metrics.paired import halves, steadiest, wins
from monosemy.metrics.probes import fit_logistic
from monosemy.metrics.table import MetricRow

DICTIONARY, NEURON, PROBE = "dictionary", "best neuron", "linear probe"
TOKENS, LENGTH = "bag of tokens", "length"
ACCURACY, ALONE, AGAINST = "pairwise accuracy", "AUROC, texts alone", "AUROC against controls"

_CS = (0.001, 0.01, 0.1, 1.0)
_DRAWS = 1000

Scores = Float[np.ndarray, " texts"]
"""How flawed, or whatever comes before, each text is said to be."""


def contrast(
    dictionary: Dictionary, lm: LM, pairs: Sequence[Pair], *, most: int = 40, seed: int = 0
) -> SuiteResult:
    """Find features that differ between paired texts, and hold them against baselines.

    Of each class, the feature (and pooling) that is most often right on one half of the groups is
    scored on the other half, beside the best raw neuron, a logistic regression on raw activations,
    one on the counts of tokens, and the texts' lengths, all fitted on the same half to differences
    within pairs.

    Args:
        dictionary: whose features.
        lm: its model.
        pairs: with classes and groups; those of class `control` differ by no flaw.
        most: pairs of each class at most.
        seed: of what is drawn.

    Returns:
        Tables, judgements and verdict; `series["features"]` holds every feature that differs and
        `series["best"]` the one of each class, as `FeatureContrast`s.

    Raises:
        UserError: the dictionary does not fit the model, or no class has enough pairs.
    """
    found = prepare_pairs(dictionary, lm, pairs, most=most, seed=seed)
    features = contrast_features(found, dictionary, lm, seed=seed)
    scores = {label: _scores(found, f) for label, f in features.best.items()}
    return _result(features, scores, seed)


def _scores(found: PairSet, feature: FeatureContrast) -> dict[str, Scores]:
    """Return what each column says of every text, chosen and fitted on the first half."""
    rows, pooled = found.rows(feature.label, True), found.pooled
    code = pooled.codes[feature.region, feature.pool][:, [feature.feature]].toarray()[:, 0]
    counts = _counts(found)
    length = pooled.length.astype(np.float64)
    return {
        DICTIONARY: code * (1 if feature.before else -1),
        NEURON: _best_neuron(found, rows),
        PROBE: _fitted(found, rows, [pooled.raw[name] for name in POOLINGS]),
        TOKENS: _fitted(found, rows, [counts]),
        LENGTH: length * _direction(found.difference(length)[rows]),
    }


def _direction(d: np.ndarray) -> np.ndarray:
    """Return -1 where differences are mostly below 0, else 1."""
    return np.where(wins(d).mean(0) < 0.5, -1, 1)


def _best_neuron(found: PairSet, rows: Int[np.ndarray, " rows"]) -> Scores:
    """Return the number, and pooling, chosen as the feature is."""
    every = np.concatenate([found.pooled.raw[name] for name in POOLINGS], 1)
    d = found.difference(every)[rows].astype(np.float64)
    best = steadiest(d)
    return every[:, best] * _direction(d[:, best])


def _counts(found: PairSet) -> Float[np.ndarray, "texts tokens"]:
    """Return how often tokens stand in each text that is read; those that differ somewhere."""
    ids = [cut.ids for cut in found.pooled.cuts]
    text = np.repeat(np.arange(len(ids)), [len(i) for i in ids])
    flat = np.concatenate(ids)
    counts = sparse.csr_array((np.ones(len(flat)), (text, flat)))
    differ = np.unique((counts[::2] - counts[1::2]).nonzero()[1])
    return counts[:, differ].toarray()


def _fitted(
    found: PairSet, rows: Int[np.ndarray, " rows"], numbers: Sequence[np.ndarray]
) -> Scores:
    """Return scores of a logistic regression on differences within pairs.

    Which of `numbers` it sees, and its penalty, are chosen by accuracy across two parts of the
    half that it is fitted on, which share no group.
    """
    inner = halves(np.unique(found.group[rows], return_inverse=True)[1], np.zeros_like(rows))
    best: tuple[float, int, float] = (-1.0, 0, _CS[0])
    for number, x in enumerate(numbers):
        d = _scaled(found.difference(x)[rows])[0]
        there = np.stack([c * fold for c in _CS for fold in (inner, ~inner)])
        weights = _logistic(d, there)
        held = np.stack([~fold for _ in _CS for fold in (inner, ~inner)])
        right = (wins(weights @ d.T) * held).sum(1).reshape(len(_CS), 2).sum(1) / len(rows)
        i = int(right.argmax())
        if right[i] > best[0]:
            best = float(right[i]), number, _CS[i]
    _, number, c = best
    d, back = _scaled(found.difference(numbers[number])[rows])
    weights = _logistic(d, np.full((1, len(rows)), c))[0]
    return numbers[number] @ (back @ weights)


def _scaled(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return differences of unit size, in no more numbers than pairs, and the way there.

    A rotation, which the penalty does not see.
    """
    size = np.sqrt((d**2).mean(0))
    scale = np.divide(1, size, out=np.zeros_like(size), where=size > 1e-12)
    x = (d * scale).astype(np.float64)
    if len(x) >= x.shape[1]:
        return x, np.diag(scale)
    squares, left = np.linalg.eigh(x @ x.T)
    kept = squares > 1e-10 * max(squares[-1], 1e-30)
    values, left = np.sqrt(squares[kept]), left[:, kept]
    return left * values, scale[:, None] * (x.T @ left / values)


def _logistic(d: np.ndarray, there: np.ndarray) -> Float[np.ndarray, "tasks k"]:
    """Return weights of logistic regressions that are the same for both orders of a pair."""
    if not d.shape[1]:  # nothing differs in any pair
        return np.zeros((len(there), 0))
    x = torch.from_numpy(np.concatenate([d, -d])).double().expand(len(there), -1, -1)
    y = torch.arange(2 * len(d)).expand(len(there), -1) < len(d)
    weight = torch.from_numpy(np.concatenate([there, there], 1)).double()
    return fit_logistic(x, y, weight)[0].numpy()


def _result(found: Contrast, scores: Mapping[str, Mapping[str, Scores]], seed: int) -> SuiteResult:
    pairs = found.set
    names, group = np.unique(pairs.group[~pairs.first], return_inverse=True)
    every = np.zeros(len(pairs.pairs), np.int64)
    every[~pairs.first] = group
    drawn = bootstrap_weights(len(names), _DRAWS, seed)
    weights = np.concatenate([np.ones((1, len(names))), drawn])[:, every]
    columns = list(next(iter(scores.values())))
    each = {
        label: {column: _figures(pairs, label, s, weights) for column, s in mine.items()}
        for label, mine in scores.items()
    }
    classes = [label for label in scores if label != ALL] or [ALL]
    mean = {
        column: {
            figure: _mean(np.stack([each[label][column][figure] for label in classes]))
            for figure in each[classes[0]][column]
        }
        for column in columns
    }
    judgements = [
        judgement
        for figure in mean[DICTIONARY]
        for judgement in judge(figure, {c: mean[c][figure][1:] for c in columns}, better="higher")
    ]
    rows = [_row(figure, figure, mean) for figure in mean[DICTIONARY]]
    by_class = [_row(label, ACCURACY, each[label]) for label in scores]
    title = "held-out pairs, mean over classes" if classes != [ALL] else "held-out pairs"
    return SuiteResult(
        "contrast",
        "Paired texts: features that tell which comes before",
        [Table(columns, rows, title), Table(columns, by_class, ACCURACY)],
        _verdict(found, classes, each, told(judgements)),
        judgements,
        _context(found, classes),
        series={
            "best": [asdict(f) for f in found.best.values()],
            "features": [asdict(f) for f in found.features],
        },
    )


def _figures(
    pairs: PairSet, label: str, scores: Scores, weights: Float[np.ndarray, "draws pairs"]
) -> dict[str, Float[np.ndarray, " draws"]]:
    """Return the figures of one column for one class, the first draw being the pairs as they are.

    NaN in draws without a pair of the class.
    """
    rows, controls = pairs.rows(label, False), pairs.rows(CONTROL, False)
    w, d = weights[:, rows], pairs.difference(scores)
    before, after = scores[2 * rows], scores[2 * rows + 1]
    found = {
        ACCURACY: _share((w * wins(d[rows])).sum(1), w.sum(1)),
        ALONE: _auroc(before, after, w, w, 1 - np.eye(len(rows))),
    }
    if len(controls):
        every = np.ones((len(rows), len(controls)))
        found[AGAINST] = _auroc(d[rows], d[controls], w, weights[:, controls], every)
    return found


def _auroc(
    high: np.ndarray, low: np.ndarray, w: np.ndarray, v: np.ndarray, compared: np.ndarray
) -> np.ndarray:
    """Return how often one number is above another, ties half, for each draw of both."""
    above = wins(high[:, None] - low) * compared
    return _share(((w @ above) * v).sum(1), ((w @ compared) * v).sum(1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _mean(values: Float[np.ndarray, "classes draws"]) -> Float[np.ndarray, " draws"]:
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(0) / known.sum(0)


def _row(name: str, figure: str, columns: Mapping[str, Mapping[str, np.ndarray]]) -> MetricRow:
    points = {c: {figure: f[figure][:1]} for c, f in columns.items()}
    drawn = {c: {figure: _known(f[figure][1:])} for c, f in columns.items()}
    return MetricRow(name, "", "higher", _SAID[figure], cells(points, drawn, figure))


def _known(draws: np.ndarray) -> np.ndarray:
    return draws[np.isfinite(draws)]


_SAID = {
    ACCURACY: "share of pairs in which the text before scores above the one after, ties half; "
    "0.5 by chance",
    ALONE: "chance that a text from before scores above one from after that is not its partner",
    AGAINST: "chance that a pair's difference is above that of a pair that differs by no flaw",
}


def _verdict(found: Contrast, classes: Sequence[str], each: Mapping[str, Any], judged: str) -> str:
    best = [found.best[label] for label in classes]
    told_apart = [f for f in best if f.accuracy_low > 0.5]
    beyond = [f for f in told_apart if f.tokens_accuracy < f.accuracy_low]
    rows = {int(row) for label in classes for row in found.set.rows(label, False)}
    return (
        f"On {len(rows)} held-out pairs: {judged}. A single feature tells "
        f"{len(told_apart)} of {len(best)} classes above chance, {len(beyond)} of them by more "
        f"than which tokens there are. {found.discoveries:,} of {found.tests:,} tests find "
        f"a difference (q {Q}); with signs at random {found.by_chance:.0f} would."
    )


def _context(found: Contrast, classes: Sequence[str]) -> dict[str, Any]:
    pairs = found.set
    counts: dict[str, list[int]] = {}
    for label, first in zip(pairs.label, pairs.first, strict=True):
        counts.setdefault(label, [0, 0])[int(not first)] += 1
    return {
        "pairs": len(pairs.pairs),
        "groups": int(pairs.group.max()) + 1,
        "classes": counts,
        "measured": list(classes),
        "left_out": [k for k in counts if k not in found.best and k != CONTROL],
        "fewest": FEWEST,
        "dropped": dict(pairs.dropped),
        "differ": found.found,
        "tests": found.tests,
        "discoveries": found.discoveries,
        "by_chance": found.by_chance,
        "q": Q,
    }
