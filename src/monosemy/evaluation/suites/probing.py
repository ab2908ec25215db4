"""How much of a concept a few features say: sparse probes beside supervised ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from monosemy.evaluation.examples import (
    DICTIONARY,
    FOLDS,
    UNTRAINED,
    Examples,
    examples_of,
    tokens_read,
)
from monosemy.evaluation.result import Judgement, Plot, SuiteResult, Table, judge, told
from monosemy.evaluation.subject import Subject, Suite
from monosemy.metrics import bootstrap_weights, interval, weighted_means
from monosemy.metrics.probes import (
    f1_and_balanced_accuracy,
    fit_logistic,
    placements,
    youden_threshold,
)
from monosemy.metrics.table import MetricRow, MetricValue
from monosemy.progress import Task

KS = (1, 2, 5, 16, 128)
"""Features that a probe is given."""
JUDGED = (1, 5)
"""Of these, those that the dictionary is judged by."""
NULL = 5
"""Features of the probes that are fitted to permuted labels."""
NEURONS, DENSE = "raw neurons", "dense probe"
_CS = (0.001, 0.01, 0.1, 1.0)
_TUNED = 16
"""Concepts by which the dense probe's penalty is chosen, one for all."""

SPARSE = [DICTIONARY, UNTRAINED, NEURONS]

Scores = Float[np.ndarray, "tasks most"]
Probe = Callable[["Tasks", np.ndarray], Mapping[str, np.ndarray]]
"""Tasks, and which examples to fit to -> scores of all examples, by the name of the probe."""


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """The examples of each concept, one row a concept."""

    rows: Int[np.ndarray, "tasks most"]
    y: Bool[np.ndarray, "tasks most"]
    there: Bool[np.ndarray, "tasks most"]
    """False where a row is filled up."""
    fold: Int[np.ndarray, "tasks most"]
    document: Int[np.ndarray, "tasks most"]
    n: int
    """Examples that `rows` point to."""

    @classmethod
    def of(cls, examples: Examples) -> Tasks:
        """Return the examples that were drawn."""
        rows = examples.rows
        fold, document = examples.fold[rows], examples.document[rows]
        return cls(rows, examples.target, rows >= 0, fold, document, len(examples.labels))

    def permuted(self, rng: np.random.Generator) -> Tasks:
        """Return the tasks with the labels of each fold's examples in a random order."""
        y = self.y.copy()
        for task, there in enumerate(self.there):
            for fold in range(FOLDS):
                places = np.flatnonzero(there & (self.fold[task] == fold))
                y[task, places] = y[task, rng.permutation(places)]
        return replace(self, y=y)

    def indicator(self, chosen: Bool[np.ndarray, "tasks most"]) -> sparse.csr_array:
        """Return [tasks, n] with 1 at the examples chosen."""
        task, place = np.nonzero(chosen)
        ones = np.ones(len(task), dtype=np.float32)
        return sparse.csr_array((ones, (task, self.rows[task, place])), (len(self.rows), self.n))


def run(subject: Subject) -> SuiteResult:
    """Probe for concepts with the best k features, chosen on training folds, and score the rest.

    For each concept and fold, features are ranked by their standardised mean difference over the
    other folds' examples, and a logistic regression is fitted there to the k best, standardised
    (L2, C = 1). Its scores of the fold's own examples, whose texts are in no other fold, give
    AUROC; F1 and balanced accuracy are those at the threshold of the best balanced accuracy in
    training. Beside them: features of an untrained dictionary and raw neurons, chosen in the same
    way, and probes that see everything, whose comparison is told and not judged.

    Raises:
        NotMeaningful: nothing is labelled, or no concept has enough examples.
    """
    examples = examples_of(subject)
    tasks = Tasks.of(examples)
    permuted = tasks.permuted(np.random.default_rng(subject.seed))
    codes = {**examples.codes, NEURONS: examples.x.cpu().numpy()}
    found: dict[str, dict[str, _Figures]] = {}
    figures = _Scorer(subject, tasks)
    supervised = _supervised(examples)
    with Task("probing", len(codes) + len(supervised), "kinds of probe") as task:
        for name, code in codes.items():
            found[name] = figures.of(tasks, _sparse(code, KS))
            null = figures.of(permuted, _sparse(code, (NULL,)))
            found[name]["null"] = null[str(NULL)]
            task.advance(1)
        for name, probe in supervised.items():
            found[name] = figures.of(tasks, probe)
            task.advance(1)
    return _result(subject, examples, tasks, found)


def _cost(subject: Subject) -> int:
    return subject.fit_tokens + tokens_read(subject)


def choose_features(
    code: sparse.csr_array | np.ndarray,
    tasks: Tasks,
    train: Bool[np.ndarray, "tasks most"],
    k: int,
) -> Int[np.ndarray, "tasks k"]:
    """Return the k features, best first, whose means over training examples differ most by label.

    The difference is counted in standard deviations within labels, so that the scale of a feature
    does not matter; its sign neither. A feature that never varies comes last.
    """
    moments = []
    for kind in (train & tasks.y, train & ~tasks.y):
        chosen = tasks.indicator(kind)
        count = np.maximum(kind.sum(1), 1)[:, None]
        mean, square = (_dense(chosen @ a) / count for a in (code, code * code))
        moments.append((mean, np.maximum(square - mean**2, 0)))
    (mean, variance), (other_mean, other_variance) = moments
    spread = np.sqrt((variance + other_variance) / 2)
    apart = np.abs(mean - other_mean)
    # What never varies within labels, but between them, is perfect.
    perfect = np.where(apart > 1e-6 * (np.abs(mean) + np.abs(other_mean)) + 1e-30, np.inf, 0)
    score = np.divide(apart, spread, out=perfect, where=spread > 1e-6 * np.abs(mean) + 1e-30)
    return np.argsort(-score, axis=1, kind="stable")[:, :k]


def _sparse(code: sparse.csr_array | np.ndarray, ks: tuple[int, ...]) -> Probe:
    """Return logistic regressions on the k best features, for each k."""

    def probe(tasks: Tasks, train: np.ndarray) -> dict[str, np.ndarray]:
        features = choose_features(code, tasks, train, max(ks))
        rows = np.maximum(tasks.rows, 0)
        values = np.stack([_dense(code[r][:, f]) for r, f in zip(rows, features, strict=True)])
        scaled = _standardised(torch.from_numpy(values).float(), train)
        return {str(k): _logistic(scaled[:, :, :k], tasks, train) for k in ks}

    return probe


def _dense(values: Any) -> np.ndarray:
    return values.toarray() if sparse.issparse(values) else values


def _standardised(
    x: Float[Tensor, "tasks most k"], train: Bool[np.ndarray, "tasks most"]
) -> Float[Tensor, "tasks most k"]:
    """Return numbers with mean 0 and standard deviation 1 over training examples."""
    weight = torch.from_numpy(train).to(x)[:, :, None]
    count = weight.sum(1, keepdim=True)
    centred = x - (weight * x).sum(1, keepdim=True) / count
    spread = ((weight * centred.square()).sum(1, keepdim=True) / count).sqrt()
    return centred / spread.where(spread > 1e-6 * x.abs().amax(1, keepdim=True), 1)


def _logistic(x: Tensor, tasks: Tasks, train: np.ndarray, c: float = 1.0) -> np.ndarray:
    y, there = (torch.from_numpy(a).to(x.device) for a in (tasks.y, train))
    weights, intercepts = fit_logistic(x, y, there, c)
    return ((x @ weights[:, :, None])[:, :, 0] + intercepts[:, None]).cpu().numpy()


def _supervised(examples: Examples) -> dict[str, Probe]:
    """Return the probes that see all of an example, or its words or length alone."""
    length = examples.length.astype(np.float32)
    lengths = np.stack([length, np.log1p(length)], 1)
    probes = {DENSE: _dense_probe(examples.x), "difference of means": _means(examples.x)}
    probes |= {name: _bayes(counts) for name, counts in examples.words.items()}
    return probes | {"position" if examples.of_tokens else "length": _plain(lengths)}


def _dense_probe(x: Float[Tensor, "n d_in"]) -> Probe:
    """Return the logistic regression on all numbers, its penalty chosen within training folds."""
    if len(x) < x.shape[1]:  # a rotation, which the penalty does not see, to as many numbers
        left, size, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        x = left * size

    def probe(tasks: Tasks, train: np.ndarray) -> dict[str, np.ndarray]:
        rows = torch.from_numpy(np.maximum(tasks.rows, 0)).to(x.device)
        scaled = _standardised(x[rows], train)
        some = slice(0, _TUNED)
        few = replace(tasks, **{f: getattr(tasks, f)[some] for f in ("rows", "y", "there", "fold")})
        inner = few.fold == few.fold[train[some]].min()
        fitted, held = train[some] & ~inner, train[some] & inner
        scores = [_logistic(scaled[some], few, fitted, c) for c in _CS]
        best = [np.nanmean(placements(s, held & few.y, held & ~few.y)) for s in scores]
        return {"": _logistic(scaled, tasks, train, _CS[int(np.argmax(best))])}

    return probe


def _means(x: Float[Tensor, "n d_in"]) -> Probe:
    """Return the direction between the means of both labels (mass-mean), about their middle."""
    values = x.cpu().numpy()

    def probe(tasks: Tasks, train: np.ndarray) -> dict[str, np.ndarray]:
        sides = (train & tasks.y, train & ~tasks.y)
        yes, no = (tasks.indicator(s) @ values / s.sum(1, keepdims=True) for s in sides)
        direction = yes - no
        middle = ((yes + no) / 2 * direction).sum(1, keepdims=True)
        return {"": _at_rows(values @ direction.T, tasks) - middle}

    return probe


def _bayes(counts: sparse.csr_array) -> Probe:
    """Return naive Bayes on counts of tokens (multinomial, add-one)."""

    def probe(tasks: Tasks, train: np.ndarray) -> dict[str, np.ndarray]:
        logs = []
        for kind in (train & tasks.y, train & ~tasks.y):
            seen = _dense(tasks.indicator(kind) @ counts) + 1
            logs.append(np.log(seen / seen.sum(1, keepdims=True)))
        return {"": _at_rows(counts @ (logs[0] - logs[1]).T, tasks)}

    return probe


def _plain(numbers: Float[np.ndarray, "n k"]) -> Probe:
    def probe(tasks: Tasks, train: np.ndarray) -> dict[str, np.ndarray]:
        values = torch.from_numpy(numbers[np.maximum(tasks.rows, 0)])
        return {"": _logistic(_standardised(values, train), tasks, train)}

    return probe


def _at_rows(scores: Float[np.ndarray, "n tasks"], tasks: Tasks) -> np.ndarray:
    return np.take_along_axis(scores.T, np.maximum(tasks.rows, 0), 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Figures:
    """AUROC, F1 and balanced accuracy of a kind of probe, means over concepts, and their draws."""

    points: dict[str, float]
    samples: dict[str, np.ndarray]
    each: Float[np.ndarray, " tasks"]
    """AUROC of each concept."""
    ends: Float[np.ndarray, "tasks 2"]
    """The interval it lies in."""

    def value(self, figure: str) -> MetricValue:
        low, high = np.clip(interval({"d": self.samples[figure]})["d"], 0, 1)
        return MetricValue(self.points[figure], float(low), float(high))


class _Scorer:
    """Scores probes on the folds that they are not fitted to; the same draws for all."""

    def __init__(self, subject: Subject, tasks: Tasks) -> None:
        texts, self.text = np.unique(tasks.document, return_inverse=True)
        self.text = self.text.reshape(tasks.document.shape)
        self.texts = len(texts)
        self.weights = bootstrap_weights(self.texts, subject.draws, subject.seed)
        # How far chance carries a fitted probe shows in how concepts differ, not in its texts.
        self.concepts = bootstrap_weights(len(tasks.rows), subject.draws, subject.seed + 1)

    def of(self, tasks: Tasks, probe: Probe) -> dict[str, _Figures]:
        """Return the figures of each probe that `probe` fits."""
        placed: dict[str, np.ndarray] = {}
        said: dict[str, np.ndarray] = {}
        for fold in range(FOLDS):
            test = tasks.there & (tasks.fold == fold)
            train = tasks.there & ~test
            for name, scores in probe(tasks, train).items():
                threshold = youden_threshold(scores, train & tasks.y, train & ~tasks.y)
                place = placements(scores, test & tasks.y, test & ~tasks.y)
                shape = scores.shape
                placed.setdefault(name, np.full(shape, np.nan))[test] = place[test]
                over = scores > threshold[:, None]
                said.setdefault(name, np.zeros(shape, dtype=bool))[test] = over[test]
        return {name: self._figures(tasks, placed[name], said[name]) for name in placed}

    def _figures(self, tasks: Tasks, placed: np.ndarray, said: np.ndarray) -> _Figures:
        auroc, varies = _auroc(tasks, placed)
        by_text = self._sums(varies)
        drawn = self.weights @ by_text + auroc
        kinds = (tasks.y & said, ~tasks.y & said, tasks.y & ~said, ~tasks.y & ~said)
        counts = [self._sums(tasks.there & kind) for kind in kinds]
        points = f1_and_balanced_accuracy(*(c.sum(0) for c in counts))
        samples = f1_and_balanced_accuracy(*(self.weights @ c for c in counts))
        names = ("F1", "balanced accuracy")
        return _Figures(
            {"AUROC": float(auroc.mean())}
            | {name: float(np.mean(p)) for name, p in zip(names, points, strict=True)},
            {"AUROC": weighted_means(drawn, self.concepts)}
            | {
                name: weighted_means(s, self.concepts)
                for name, s in zip(names, samples, strict=True)
            },
            auroc,
            np.clip(np.percentile(drawn, [2.5, 97.5], axis=0).T, 0, 1),
        )

    def _sums(
        self, values: Float[np.ndarray, "tasks most"] | Bool[np.ndarray, "tasks most"]
    ) -> np.ndarray:
        """Return sums over the examples of each text: [texts, tasks]."""
        count = len(values)
        place = self.text * count + np.arange(count)[:, None]
        sums = np.bincount(place.ravel(), values.ravel(), minlength=self.texts * count)
        return sums.reshape(self.texts, count)


def _auroc(
    tasks: Tasks, placed: Float[np.ndarray, "tasks most"]
) -> tuple[Float[np.ndarray, " tasks"], Float[np.ndarray, "tasks most"]]:
    """Return AUROC within folds, a mean over positive examples, and what each example adds to it.

    Scores of different folds come from different probes and are not compared. The sum of the
    additions is 0; times bootstrap weights it is AUROC's linear part (DeLong et al. 1988,
    clustered by Obuchowski 1997).
    """
    known = np.isfinite(placed)
    positive, negative = known & tasks.y, known & ~tasks.y
    count = positive.sum(1, keepdims=True)
    auroc = np.where(positive, placed, 0).sum(1, keepdims=True) / count
    adds = np.where(positive, (placed - auroc) / count, 0)
    for fold in range(FOLDS):
        mine = tasks.fold == fold
        share = (positive & mine).sum(1, keepdims=True) / count
        among = np.maximum((negative & mine).sum(1, keepdims=True), 1)
        mean = np.where(negative & mine, placed, 0).sum(1, keepdims=True) / among
        adds = np.where(negative & mine, share * (placed - mean) / among, adds)
    return auroc[:, 0], adds


def _result(
    subject: Subject,
    examples: Examples,
    tasks: Tasks,
    found: Mapping[str, Mapping[str, _Figures]],
) -> SuiteResult:
    supervised = [name for name in found if name not in SPARSE]
    judgements = [j for k in JUDGED for j in _judge(found, SPARSE, k)]
    told_only = _judge(found, [DICTIONARY, *supervised], JUDGED[-1])
    what = "tokens" if examples.of_tokens else "documents"
    order = np.argsort(-found[DICTIONARY]["1"].each)
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [_sparse_table(found), _supervised_table(found, supervised)],
        verdict=f"{len(examples.names)} concepts of {what}: {told(judgements)}. Beside probes "
        f"that see everything, not judged: {told(told_only)}.",
        judgements=judgements,
        context={
            **examples.context,
            "selection": "standardised mean difference, on training folds",
            "probe": "logistic regression, L2, C = 1, features standardised on training folds",
            "dense probe": f"the same, C one of {list(_CS)}, chosen within training folds",
            "interval": "95%, bootstrap over texts and concepts",
        },
        plots=[
            Plot(
                "AUROC by the number of features",
                "features",
                "AUROC, mean over concepts",
                {
                    name: [
                        (float(k), v.value, v.low, v.high)
                        for k in KS
                        for v in [_at(found, name, k)]
                    ]
                    for name in SPARSE
                },
            ),
            Plot(
                "Concepts, best first",
                "concept",
                "AUROC of one feature",
                {
                    name: [
                        (float(i), one.each[c], *one.ends[c]) for i, c in enumerate(order.tolist())
                    ]
                    for name in (DICTIONARY, UNTRAINED)
                    for one in [found[name]["1"]]
                },
            ),
        ],
        series={
            "concepts": list(examples.names),
            "auroc": {
                f"{name}, k={key}" if key else name: [round(a, 4) for a in one.each.tolist()]
                for name, probes in found.items()
                for key, one in probes.items()
                if key != "null"
            },
            "feature": choose_features(examples.codes[DICTIONARY], tasks, tasks.there, 1)[
                :, 0
            ].tolist(),
        },
    )


def _at(found: Mapping[str, Mapping[str, _Figures]], name: str, k: int) -> MetricValue:
    return found[name][str(k)].value("AUROC")


def _judge(
    found: Mapping[str, Mapping[str, _Figures]], names: list[str], k: int
) -> list[Judgement]:
    probes = {name: found[name].get(str(k)) or found[name][""] for name in names}
    samples = {name: probe.samples["AUROC"] for name, probe in probes.items()}
    return judge(f"AUROC, k={k}", samples, better="higher")


_SAID = {
    "AUROC": "chance that a positive example scores above a negative one; 0.5 = by chance",
    "F1": "2 hits / (said + true), at a threshold chosen in training",
    "balanced accuracy": "mean share right of either label, at a threshold chosen in training",
}


def _sparse_table(found: Mapping[str, Mapping[str, _Figures]]) -> Table:
    rows = [
        MetricRow(
            f"{figure}, k={k}", "", "higher", said, [found[c][str(k)].value(figure) for c in SPARSE]
        )
        for figure, said in _SAID.items()
        for k in KS
    ]
    rows.append(
        MetricRow(
            f"AUROC, k={NULL}, labels permuted",
            "",
            "",
            "the same with labels in a random order: 0.5, or the figures above mean nothing",
            [found[c]["null"].value("AUROC") for c in SPARSE],
        )
    )
    return Table(SPARSE, rows, "the best k")


def _supervised_table(found: Mapping[str, Mapping[str, _Figures]], supervised: list[str]) -> Table:
    columns = {f"{DICTIONARY}, k={k}": found[DICTIONARY][str(k)] for k in (JUDGED[-1], KS[-1])}
    columns |= {name: found[name][""] for name in supervised}
    rows = [
        MetricRow(figure, "", "higher", said, [one.value(figure) for one in columns.values()])
        for figure, said in _SAID.items()
    ]
    return Table(list(columns), rows, "beside supervised probes")


SUITE = Suite("probing", "Sparse probing", "standard", run, _cost)
