"""1-D probe loss: how well the one best feature predicts each concept (Gao et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosemy.coders import SparseCoder
from monosemy.evaluation.examples import (
    DICTIONARY,
    UNTRAINED,
    Examples,
    examples_of,
    tokens_read,
)
from monosemy.evaluation.result import Plot, SuiteResult, Table, judge, quantiles, told
from monosemy.evaluation.subject import Subject, Suite
from monosemy.metrics import bootstrap_weights, interval, weighted_means
from monosemy.metrics.probes import cross_entropy, least_probe_loss
from monosemy.metrics.table import Better, MetricRow, MetricValue
from monosemy.progress import Task

COLUMNS = [DICTIONARY, UNTRAINED, "raw neurons"]

_ROWS: list[tuple[str, Better, str]] = [
    (
        "probe loss, held out",
        "lower",
        "cross-entropy of the best single feature, chosen and fitted on training folds, on the "
        "rest; ln 2 = 0.693 says nothing of the concept",
    ),
    (
        "probe loss",
        "lower",
        "the same, chosen, fitted and scored on the same examples (Gao et al.)",
    ),
    ("probe loss, labels permuted", "", "that with labels in a random order: what luck can do"),
]

Values = Callable[[np.ndarray], Tensor]
"""Examples -> a number of each feature there, [features, n]."""


def run(subject: Subject) -> SuiteResult:
    """Measure the cross-entropy of the best single feature, mean over concepts.

    For each concept and every feature a logistic regression on the feature's pre-activation alone
    is fitted by Newton's method; the least cross-entropy of all features is the concept's (Gao et
    al. 2024, arXiv 2406.04093, section 4.2). Examples are as many positive as negative ones. A
    foreign dictionary has no pre-activations: its activations are used.

    Raises:
        NotMeaningful: nothing is labelled, or no concept has enough examples.
    """
    examples = examples_of(subject)
    sources: dict[str, Values] = {
        DICTIONARY: _values(examples, DICTIONARY, subject.dictionary.coder),
        UNTRAINED: _values(examples, UNTRAINED, subject.untrained),
        "raw neurons": lambda rows: examples.x[rows].T.contiguous(),
    }
    rng = np.random.default_rng(subject.seed)
    shape = (len(COLUMNS), len(_ROWS), *examples.rows.shape)
    losses = np.full(shape, np.nan)
    target = examples.target
    with Task("probe loss", len(target), "concepts") as task:
        for c, (row, y) in enumerate(zip(examples.rows, target, strict=True)):
            rows, n = row[row >= 0], int((row >= 0).sum())
            labels = torch.from_numpy(y[:n])
            permuted = labels[torch.from_numpy(rng.permutation(n))]
            for i, name in enumerate(COLUMNS):
                a = sources[name](rows)
                losses[i, 0, c, :n] = _held_out(a, labels.to(a.device), examples.fold[rows])
                losses[i, 1, c, :n] = _same(a, labels.to(a.device))
                losses[i, 2, c, :n] = _same(a, permuted.to(a.device))
            task.advance(1)
    return _result(subject, examples, losses)


def _cost(subject: Subject) -> int:
    return subject.fit_tokens + tokens_read(subject)


def _values(examples: Examples, name: str, coder: SparseCoder) -> Values:
    # A foreign coder is an `encode` and a `decode`: it has no encoder's rows.
    if coder.W_enc is None:
        return lambda rows: torch.from_numpy(examples.codes[name][rows].toarray().T.copy())
    # The encoder is affine, so that of pooled activations are pooled pre-activations.
    with torch.no_grad():
        return lambda rows: coder.pre_activations(examples.x[rows]).detach().T.contiguous()


def _same(a: Float[Tensor, "features n"], y: Bool[Tensor, " n"]) -> np.ndarray:
    """Return each example's loss under the line fitted to all of them."""
    feature, _, line = least_probe_loss(a, y)
    return cross_entropy(line, a[feature], y).cpu().numpy()


def _held_out(
    a: Float[Tensor, "features n"], y: Bool[Tensor, " n"], fold: np.ndarray
) -> np.ndarray:
    """Return each example's loss under the line chosen and fitted on the other folds."""
    losses = np.zeros(len(y))
    for one in np.unique(fold):
        test = torch.from_numpy(fold == one).to(a.device)
        feature, _, line = least_probe_loss(a[:, ~test], y[~test])
        losses[fold == one] = cross_entropy(line, a[feature, test], y[test]).cpu().numpy()
    return losses


def _result(
    subject: Subject, examples: Examples, losses: Float[np.ndarray, "columns rows tasks most"]
) -> SuiteResult:
    there = examples.rows >= 0
    texts, text = np.unique(examples.document[examples.rows], return_inverse=True)
    member = text.reshape(there.shape) + len(texts) * np.arange(len(there))[:, None]
    weights = bootstrap_weights(len(texts), subject.draws, subject.seed)
    concepts = bootstrap_weights(len(there), subject.draws, subject.seed + 1)

    def by_text(values: Float[np.ndarray, "tasks most"]) -> np.ndarray:
        sums = np.bincount(member.ravel(), values.ravel(), minlength=len(texts) * len(there))
        return sums.reshape(len(there), len(texts)).T

    counts = weights @ by_text(there.astype(float))
    samples = np.zeros((*losses.shape[:2], len(weights)))
    each = np.nanmean(losses, axis=3)
    for place in np.ndindex(*losses.shape[:2]):
        sums = weights @ by_text(np.where(there, losses[place], 0))
        with np.errstate(invalid="ignore"):  # a draw may hold no example of a concept
            samples[place] = weighted_means(sums / counts, concepts)

    def value(column: int, row: int) -> MetricValue:
        ends = interval({"d": samples[column, row]})["d"]
        return MetricValue(float(each[column, row].mean()), *ends)

    judgements = judge(
        "probe loss, held out",
        {name: samples[i, 0] for i, name in enumerate(COLUMNS)},
        better="lower",
    )
    foreign = subject.dictionary.coder.W_enc is None
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [
            Table(
                COLUMNS,
                [
                    MetricRow(
                        name, "nats", better, said, [value(i, r) for i in range(len(COLUMNS))]
                    )
                    for r, (name, better, said) in enumerate(_ROWS)
                ],
            )
        ],
        verdict=f"{len(there)} concepts, one feature each: {told(judgements)}.",
        judgements=judgements,
        context={
            **examples.context,
            "features_are": "activations, not pre-activations" if foreign else "pre-activations",
            "entropy_of_labels": float(np.log(2)),
            "interval": "95%, bootstrap over texts and concepts",
        },
        plots=[
            Plot(
                "How well one feature predicts a concept",
                "share of concepts",
                "probe loss, held out (nats)",
                {name: quantiles(each[i, 0]) for i, name in enumerate(COLUMNS)},
            )
        ],
        series={
            "concepts": list(examples.names),
            "loss": {name: each[i, 0].round(4).tolist() for i, name in enumerate(COLUMNS)},
        },
    )


SUITE = Suite("probe_loss", "1-D probe loss", "standard", run, _cost)
