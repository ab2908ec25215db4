"""Whether a few features hold a concept: what probes lose, and get over, with them ablated.

Two of SAEBench's tasks (Karvonen et al. 2024, arXiv 2411.18895): targeted probe perturbation (TPP)
and spurious correlation removal (SCR, after SHIFT, Marks et al. 2024, arXiv 2403.19647). Ablation
takes z_i d_i away and keeps what the dictionary does not explain. That is linear, as the means over
a text's tokens and the probes are: no further pass of the model is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from monosemy.coders import SparseCoder
from monosemy.evaluation.examples import (
    DICTIONARY,
    UNTRAINED,
    Examples,
    Read,
    drawn_from,
    read_of,
    tokens_read,
)
from monosemy.evaluation.result import Judgement, SuiteResult, Table, judge, told
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.metrics import GroupSums, bootstrap_weights, interval
from monosemy.metrics.balanced_probes import fit_balanced
from monosemy.metrics.perturbation import (
    SMALLEST_GAP,
    ablated_logits,
    probe_drops,
    ranked,
    scr_score,
)
from monosemy.metrics.table import MetricRow, MetricValue
from monosemy.progress import Task

COUNTS = (2, 5, 10, 20, 50, 100, 500)
"""Features ablated."""
JUDGED = 20
"""Of these, the number that the verdict is about."""
FEWEST = 20
"""Examples that a class, or a cell of two labels, needs."""
CLASSES = 10
"""At most, those with most examples."""
PAIRS = 8
"""At most, those with most examples in the smallest cell."""

KINDS = (
    "function_name",
    "class_name",
    "parameter",
    "attribute",
    "keyword_argument",
    "module_name",
    "loop_variable",
    "number",
    "docstring",
    "comment",
)
"""Classes for TPP among the concepts of Python source: parts of names, numbers, prose."""
CUES = (
    ("attribute", "camel_case"),
    ("called_name", "camel_case"),
    ("name", "line_start"),
    ("operator", "continuation_line"),
    ("snake_case", "condition"),
    ("string", "condition"),
    ("assignment_target", "subscript"),
    ("private_name", "imported_name_use"),
)
"""Pairs for SCR among the concepts of Python source: what a name or sign is, and how it is spelled
or where it stands. Dense probes of the embedded model find either, and bias costs them accuracy."""

RANDOM, CHANNELS = "random features", "channels"
COLUMNS = [DICTIONARY, UNTRAINED, RANDOM, CHANNELS]

Selection = Callable[[Float[np.ndarray, " width"]], Int[np.ndarray, " ranked"]]


@dataclass(frozen=True, slots=True)
class _Column:
    """Features to ablate, and how they are chosen."""

    z: sparse.csr_array
    """[n, width] pooled activations."""
    W_dec: Float[np.ndarray, "width d"]
    select: Selection
    """Effects to features, the first to be ablated first."""

    def difference(self, rows: np.ndarray, positive: np.ndarray) -> Float[np.ndarray, " width"]:
        """Return the mean activations of some examples, less those of the others."""
        sides = (self.z[rows[positive]], self.z[rows[~positive]])
        above, below = (np.asarray(side.mean(axis=0)).ravel() for side in sides)
        return above - below

    def ablate(
        self,
        order: np.ndarray,
        rows: np.ndarray,
        logits: Float[np.ndarray, "n probes"],
        along: Float[np.ndarray, "width probes"],
        mean_of: np.ndarray | None = None,
    ) -> Float[np.ndarray, "counts n probes"]:
        """Return probes' logits on some examples with 2, 5, ... of these features ablated.

        They are set to zero, or to their mean over other examples.
        """
        z = self.z[rows][:, order].toarray()
        if mean_of is not None:
            z = z - np.asarray(self.z[mean_of].mean(axis=0)).ravel()[order]
        return ablated_logits(logits, z, along[order], COUNTS)


def _columns(subject: Subject, examples: Examples) -> dict[str, _Column]:
    """Return the dictionary, and what it is held against."""

    def largest(effects: np.ndarray) -> np.ndarray:
        return ranked(effects, COUNTS[-1])

    columns = {
        name: _Column(examples.codes[name], coder.W_dec.detach().cpu().numpy(), largest)
        for name, coder in _coders(subject).items()
    }
    mine = columns[DICTIONARY]
    live = np.unique(mine.z.indices[mine.z.data > 0])
    chance = np.random.default_rng(subject.seed).permutation(live)[: COUNTS[-1]]
    x = examples.x.cpu().numpy()
    above = x - x.mean(0)
    both = np.concatenate([above, -above], axis=1).clip(min=0)
    eye = np.eye(x.shape[1], dtype=x.dtype)
    return {
        **columns,
        RANDOM: _Column(mine.z, mine.W_dec, lambda effects: chance),
        CHANNELS: _Column(sparse.csr_array(both), np.concatenate([eye, -eye]), largest),
    }


def _coders(subject: Subject) -> dict[str, SparseCoder]:
    return {DICTIONARY: subject.dictionary.coder, UNTRAINED: subject.untrained}


class _Probes:
    """Logistic probes on pooled activations."""

    def __init__(self, x: Tensor, rows: np.ndarray, labels: Bool[np.ndarray, "probes n"]) -> None:
        """Fit one for each label, on some of the examples."""
        w, b = fit_balanced(x[rows], torch.from_numpy(labels).to(x.device))
        self.weights, self.biases = w.cpu().numpy(), b.cpu().numpy()

    def logits(self, x: Tensor, rows: np.ndarray) -> Float[np.ndarray, "n probes"]:
        return x[rows].cpu().numpy() @ self.weights.T + self.biases


def _folds(examples: Examples, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each fold of texts, the places in `rows` that are outside it, and in it."""
    fold = examples.fold[rows]
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in np.unique(fold)]


def _labelled(subject: Subject) -> Read:
    if subject.dictionary.is_transcoder:
        raise NotMeaningful(
            f"a transcoder's features fire at `{subject.dictionary.hookpoint}` and write at "
            f"`{subject.dictionary.explains}`: ablation leaves the activations that they tell of "
            "as they are"
        )
    return read_of(subject)


# --- targeted probe perturbation ---------------------------------------------------------------


def run_tpp(subject: Subject) -> SuiteResult:
    """Ablate the features of one class, and see what its probe loses, and those of others.

    Examples of exactly one class are used. Probes (logistic, one class against the rest) and the
    ranking of features are made on three folds of texts, accuracies on the fourth, in turn. The
    features of a class are those with the largest max(mean activation on the class less that on
    the rest, 0) times <d, w>. Accuracies are balanced. Intervals are 95%, from bootstrap draws of
    texts.

    Raises:
        NotMeaningful: fewer than two classes have examples enough.
    """
    read = _labelled(subject)
    names, rows, labels = _classes(subject, read)
    examples = drawn_from(subject, read, rows)
    rows = np.arange(len(rows))
    columns = _columns(subject, examples)
    m, folds = len(names), _folds(examples, rows)
    right = np.zeros((len(rows), m), dtype=bool)
    ablated = {name: np.zeros((m, len(COUNTS), *right.shape), dtype=bool) for name in columns}
    effective: list[int] = []
    with Task("tpp", len(folds), "folds") as task:
        for train, test in folds:
            probes = _Probes(examples.x, rows[train], labels[:, train])
            logits = probes.logits(examples.x, rows[test])
            right[test] = (logits > 0) == labels.T[test]
            for name, column in columns.items():
                along = column.W_dec @ probes.weights.T
                for c in range(m):
                    rise = column.difference(rows[train], labels[c, train]).clip(min=0)
                    order = column.select(rise * along[:, c])
                    after = column.ablate(order, rows[test], logits, along)
                    ablated[name][c][:, test] = (after > 0) == labels.T[test]
                    if name == DICTIONARY:
                        effective.append(len(order))
            task.advance(1)
    return _tpp_result(subject, examples, names, rows, labels, right, ablated, min(effective))


def _classes(
    subject: Subject, read: Read
) -> tuple[list[str], Int[np.ndarray, " n"], Bool[np.ndarray, "classes n"]]:
    """Return the classes, the examples of exactly one of them, and which they belong to."""
    asked = subject.size("classes", None, None, None)
    names = asked or (read.names if subject.labels is not None else KINDS)
    chosen = [read.names.index(name) for name in names if name in read.names]
    most = subject.size("examples", 128, 256, 1024)
    while True:
        labels = read.labels[:, chosen]
        alone = labels & (labels.sum(1, keepdims=True) == 1)
        counts = alone.sum(0)
        enough = counts >= FEWEST
        if enough.all():
            break
        chosen = [c for c, keep in zip(chosen, enough, strict=True) if keep]
    if len(chosen) < 2:
        raise NotMeaningful(
            f"of {len(names)} labels {len(chosen)} has {FEWEST} examples of which no other is "
            "true: two classes are needed, or more"
        )
    best = np.sort(np.argsort(-counts, kind="stable")[:CLASSES])
    rng = np.random.default_rng(subject.seed)
    places = [rng.permutation(np.flatnonzero(alone[:, c]))[:most] for c in best]
    rows = np.sort(np.concatenate(places))
    return [read.names[chosen[c]] for c in best], rows, alone[rows][:, best].T


def _tpp_result(
    subject: Subject,
    examples: Examples,
    names: Sequence[str],
    rows: Int[np.ndarray, " n"],
    labels: Bool[np.ndarray, "m n"],
    right: Bool[np.ndarray, "n m"],
    ablated: Mapping[str, Bool[np.ndarray, "m counts n m"]],
    effective: int,
) -> SuiteResult:
    resampled = _Resampled(subject, examples.document)
    base = resampled.balanced(right, labels.T, rows)
    own, others = {}, {}
    for name, after in ablated.items():
        left = resampled.balanced(after, labels.T, rows)  # [draws, ablated class, counts, probe]
        own[name], others[name] = probe_drops(base[:, None], left.swapaxes(1, 2))
    samples = {name: own[name] - others[name] for name in ablated}
    table, judgements = _by_count(
        "TPP", samples, "loss of accuracy of the class's own probe, less that of the others'"
    )
    return SuiteResult(
        TPP.name,
        TPP.title,
        [table],
        verdict=f"Of {len(rows):,} {_unit(examples)}s of {len(names)} classes, with {JUDGED} "
        f"features of one ablated: {told(judgements)}.",
        judgements=judgements,
        context={
            **_context(examples),
            "examples": len(rows),
            "classes": {name: int(of.sum()) for name, of in zip(names, labels, strict=True)},
            "accuracy": dict(zip(names, base[0].tolist(), strict=True)),
            "effective_features": effective,
        },
        series={
            "counts": list(COUNTS),
            "own": {name: drop[0].tolist() for name, drop in own.items()},
            "others": {name: drop[0].tolist() for name, drop in others.items()},
        },
    )


# --- spurious correlation removal --------------------------------------------------------------


def run_scr(subject: Subject) -> SuiteResult:
    """Ablate the features of a spurious cue, and see how far a biased probe gets over it.

    Of two labels, a probe for one is fitted where both are true or both false, so that the other
    is as good a sign; it is scored where they are independent. Features with the largest |mean
    activation where the cue is true less that where it is not| |<d, w>|, w the cue's own probe,
    are ablated. The score is the share of the accuracy lost to bias that comes back; 1 is a probe
    fitted without bias. Either label is the cue in turn: that counts in which the biased probe is
    the less accurate.

    Features are set to zero, as in SAEBench, and to their mean: a cue with features where it is
    true, and none where it is not, drags texts to one side of a probe's threshold when they are
    zero. Fitting and ranking are done on three folds of texts, scoring on the fourth, in turn.
    Intervals are 95%, from bootstrap draws of texts.

    Raises:
        NotMeaningful: no two labels have examples enough with both, either and none of them, or
            bias costs no probe any accuracy.
    """
    read = _labelled(subject)
    drawn = _pairs(subject, read)
    used = np.unique(np.concatenate([*drawn.values()]))
    pairs = {names: np.searchsorted(used, rows) for names, rows in drawn.items()}
    examples = drawn_from(subject, read, used)
    columns = _columns(subject, examples)
    resampled = _Resampled(subject, examples.document)
    biased: dict[str, _Pair] = {}
    with Task("scr", len(pairs), "pairs") as task:
        for names, rows in pairs.items():
            found = _measure_pair(examples, columns, names, rows)
            pair = _Pair.of(resampled, rows, *found)
            if pair.is_biased:
                biased[" / ".join(names)] = pair
            task.advance(1)
    if not biased:
        raise NotMeaningful(
            f"in none of {len(pairs)} pairs of labels is a probe that was fitted where they "
            "coincide surely less accurate than one that was not: there is no bias to remove"
        )
    return _scr_result(subject, examples, pairs, biased)


def _pairs(subject: Subject, read: Read) -> dict[tuple[str, str], Int[np.ndarray, " n"]]:
    """Return pairs of labels, and as many examples of each of their four cells.

    Raises:
        NotMeaningful: there are none.
    """
    asked = subject.size("pairs", None, None, None)
    every = list(itertools.combinations(read.names, 2)) if subject.labels is not None else CUES
    possible = [p for p in asked or every if set(p) <= set(read.names)]
    rng = np.random.default_rng(subject.seed)
    most = subject.size("examples", 128, 256, 1024)
    found = {}
    for names in possible:
        a, b = (read.labels[:, read.names.index(name)] for name in names)
        cells = [np.flatnonzero((a == x) & (b == y)) for x in (0, 1) for y in (0, 1)]
        size = min(most, *map(len, cells))
        if size >= FEWEST:
            found[names] = np.sort(np.concatenate([rng.permutation(c)[:size] for c in cells]))
    if not found:
        raise NotMeaningful(
            f"of {len(possible)} pairs of labels none has {FEWEST} examples with both, either and "
            "none of the two; texts may have several labels, in a list"
        )
    best = sorted(found, key=lambda names: -len(found[names]))[:PAIRS]
    return {names: found[names] for names in best}


def _measure_pair(
    examples: Examples,
    columns: Mapping[str, _Column],
    names: tuple[str, str],
    rows: Int[np.ndarray, " n"],
) -> tuple[
    Bool[np.ndarray, "n 2"], Bool[np.ndarray, "n 2"], dict[str, Bool[np.ndarray, "n ways counts 2"]]
]:
    """Return which examples probes get right, for either label as the target, the other the cue.

    That is the biased probe, the oracle, and the biased one with features ablated, either way.
    """
    labels = np.stack([examples.labels[rows, examples.names.index(name)] for name in names])
    base, oracle = (np.zeros((len(rows), 2), dtype=bool) for _ in range(2))
    ablated = {name: np.zeros((len(rows), 2, len(COUNTS), 2), dtype=bool) for name in columns}
    for train, test in _folds(examples, rows):
        alike = train[labels[0, train] == labels[1, train]]
        biased = _Probes(examples.x, rows[alike], labels[:1, alike])
        each = _Probes(examples.x, rows[train], labels[:, train])
        logits = biased.logits(examples.x, rows[test])
        truth = labels.T[test]
        base[test] = (logits > 0) == truth
        oracle[test] = (each.logits(examples.x, rows[test]) > 0) == truth
        for name, column in columns.items():
            effects, along = column.W_dec @ each.weights.T, column.W_dec @ biased.weights.T
            for target, cue in ((0, 1), (1, 0)):
                difference = column.difference(rows[train], labels[cue, train])
                order = column.select(np.abs(difference * effects[:, cue]))
                for way, mean_of in enumerate((None, rows[train])):
                    after = column.ablate(order, rows[test], logits, along, mean_of)[..., 0]
                    right = (after.T > 0) == truth[:, target, None]
                    ablated[name][test, way, :, target] = right
    return base, oracle, ablated


@dataclass(frozen=True, slots=True)
class _Pair:
    """Accuracies of a pair of labels; of the examples as they are, then of each draw."""

    base: Float[np.ndarray, "draws 2"]
    oracle: Float[np.ndarray, "draws 2"]
    ablated: dict[str, Float[np.ndarray, "draws ways counts 2"]]
    """Features set to zero, and to their mean."""

    @classmethod
    def of(
        cls,
        resampled: _Resampled,
        rows: np.ndarray,
        base: np.ndarray,
        oracle: np.ndarray,
        ablated: Mapping[str, np.ndarray],
    ) -> _Pair:
        after = {name: resampled.mean(right, rows) for name, right in ablated.items()}
        return cls(resampled.mean(base, rows), resampled.mean(oracle, rows), after)

    @property
    def target(self) -> int:
        """The label of which the biased probe is the less accurate."""
        return int(self.base[0].argmin())

    @property
    def is_biased(self) -> bool:
        """Whether bias surely costs accuracy."""
        gap = (self.oracle - self.base)[:, self.target]
        low, _ = interval({"gap": gap[1:]})["gap"]
        return gap[0] >= SMALLEST_GAP and low > 0

    def scores(self, name: str, target: int) -> Float[np.ndarray, "draws ways counts"]:
        base, oracle = (a[:, None, None, target] for a in (self.base, self.oracle))
        return scr_score(base, self.ablated[name][..., target], oracle)


def _scr_result(
    subject: Subject,
    examples: Examples,
    pairs: Mapping[tuple[str, str], np.ndarray],
    biased: Mapping[str, _Pair],
) -> SuiteResult:
    samples = {
        name: np.mean([pair.scores(name, pair.target) for pair in biased.values()], axis=0)
        for name in COLUMNS
    }
    back = "share of the accuracy lost to a spurious cue that comes back"
    ways = [{name: scores[:, way] for name, scores in samples.items()} for way in (0, 1)]
    zeroed, _ = _by_count("SCR", ways[0], f"{back}, features set to zero")
    table, judgements = _by_count("SCR about the mean", ways[1], f"{back}, features at their mean")
    said = {}
    for names, pair in biased.items():
        one, two = names.split(" / ")
        t = pair.target
        said[names] = {
            "target": (one, two)[t],
            "cue": (two, one)[t],
            "biased_accuracy": float(pair.base[0, t]),
            "oracle_accuracy": float(pair.oracle[0, t]),
            "zeroed": pair.scores(DICTIONARY, t)[0, 0].tolist(),
            "about_the_mean": pair.scores(DICTIONARY, t)[0, 1].tolist(),
        }
    return SuiteResult(
        SCR.name,
        SCR.title,
        [table, replace(zeroed, title="held-out text, as in SAEBench")],
        verdict=f"In {len(biased)} pairs of labels, with {JUDGED} features of the cue ablated: "
        f"{told(judgements)}.",
        judgements=judgements,
        context={
            **_context(examples),
            "pairs": said,
            "pairs_without_bias": [" / ".join(p) for p in pairs if " / ".join(p) not in biased],
        },
        series={
            "counts": list(COUNTS),
            "directions": [
                np.mean([p.scores(DICTIONARY, t)[0, 0] for p in biased.values()], axis=0).tolist()
                for t in (0, 1)
            ],
        },
    )


# --- what both share ---------------------------------------------------------------------------


class _Resampled:
    """Accuracies of the examples as they are, first, and in bootstrap draws of texts."""

    def __init__(self, subject: Subject, document: Int[np.ndarray, " n"]) -> None:
        texts, self._group = np.unique(document, return_inverse=True)
        drawn = bootstrap_weights(len(texts), subject.draws, subject.seed)
        self._weights = np.concatenate([np.ones((1, len(texts))), drawn])

    def _sums(self, values: np.ndarray, rows: np.ndarray) -> Float[np.ndarray, "draws columns"]:
        sums = GroupSums(values.shape[1])
        sums.add(values.astype(np.float64), self._group[rows])
        return sums.weighted(self._weights)

    def mean(self, right: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return accuracies of [n, ...], [draws, ...]; 0 where a draw has no example."""
        total = self._sums(np.ones((len(rows), 1)), rows)
        found = self._sums(right.reshape(len(rows), -1), rows) / np.maximum(total, 1)
        return found.reshape(-1, *right.shape[1:])

    def balanced(
        self, right: np.ndarray, truth: Bool[np.ndarray, "n m"], rows: np.ndarray
    ) -> np.ndarray:
        """Return balanced accuracies of [..., n, m], [draws, ..., m]; 0 for a class not drawn."""
        halves = []
        for side in (truth, ~truth):
            of = np.moveaxis(right & side, -2, 0)
            sums = self._sums(of.reshape(len(rows), -1), rows).reshape(-1, *of.shape[1:])
            total = self._sums(side, rows)
            between = (1,) * (of.ndim - 2)
            halves.append(sums / np.maximum(total, 1).reshape(len(total), *between, -1))
        return sum(halves) / 2


def _by_count(
    title: str, samples: Mapping[str, Float[np.ndarray, "draws counts"]], said: str
) -> tuple[Table, list[Judgement]]:
    """Return a row for each number of features ablated, and how the one that counts compares."""
    rows = []
    for i, count in enumerate(COUNTS):
        ends = interval({name: found[1:, i] for name, found in samples.items()})
        values = [MetricValue(float(samples[name][0, i]), *ends[name]) for name in samples]
        rows.append(MetricRow(f"{title}, {count} features", "", "higher", said, [*values]))
    judged = {name: found[1:, COUNTS.index(JUDGED)] for name, found in samples.items()}
    figure = f"{title}, {JUDGED} features"
    return Table(list(samples), rows, "held-out text"), judge(figure, judged, better="higher")


def _unit(examples: Examples) -> str:
    return "token" if examples.of_tokens else "document"


def _context(examples: Examples) -> dict[str, Any]:
    return {
        "unit": _unit(examples),
        "folds": len(np.unique(examples.fold)),
        "judged_features": JUDGED,
        "probes": "logistic regression on pooled activations, classes balanced",
        "base": "what the dictionary does not explain stays in",
        "interval": "95%, bootstrap over texts",
    }


TPP = Suite("tpp", "Targeted probe perturbation", "standard", run_tpp, tokens_read)
SCR = Suite("scr", "Spurious correlation removal", "standard", run_scr, tokens_read)
