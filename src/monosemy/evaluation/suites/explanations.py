"""How far features are explained by patterns of tokens: precision, recall, and what is lost."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosemy.coders import SparseCoder
from monosemy.corpus import TokenBatch
from monosemy.evaluation.result import SuiteResult, Table, judge, told
from monosemy.evaluation.simulation import Kind, Scores, Simulation, token_rule
from monosemy.evaluation.splice import Splices
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.interpret.firings import Firings, TokenRows, collect_firings
from monosemy.interpret.n2g import EXEMPLARS, activate_in, explain_features
from monosemy.metrics import LossEffect, bootstrap_weights, interval
from monosemy.metrics.table import Better, MetricRow, MetricValue
from monosemy.progress import Task

FEWEST = EXEMPLARS
"""Training tokens on which a feature must fire to be looked at."""
_LEAST_FEATURES = 4
_TOKENS_A_CONTEXT = 110
"""Through the model up to the hook point: as measured, not the most it can be."""

DICTIONARY, UNTRAINED, RULE = "dictionary", "untrained dictionary", "token rule"
_OWNER = {DICTIONARY: DICTIONARY, UNTRAINED: UNTRAINED, RULE: DICTIONARY}
"""Column -> whose features it explains."""

_ROWS: list[tuple[str, str, str, Better, str]] = [
    ("F1", "f1", "", "higher", "of explanations as predictions of where features fire; mean"),
    ("precision", "precision", "", "higher", "share of predicted tokens on which it fires; mean"),
    ("recall", "recall", "", "higher", "share of the tokens on which it fires, predicted; mean"),
    ("lift", "lift", "", "higher", "precision over density; median of the features"),
    ("density", "density", "", "", "share of tokens on which it fires, precision by chance; mean"),
    ("CE", "ce", "nats", "lower", "next-token loss, features replaced by their explanations"),
    ("CE increase", "increase", "nats", "lower", "that, less the loss with features as they are"),
    ("loss kept", "kept", "", "higher", "1 = as with features as they are; 0 = as at their means"),
]

Figures = dict[str, dict[str, np.ndarray]]
"""Column -> figure -> [draws]."""


def run(subject: Subject) -> SuiteResult:
    """Explain features by patterns (N2G) and measure how well these stand for them.

    Patterns are made on `tokens` training tokens, from random contexts; precision and recall are
    those on as many held-out tokens, all of them (Gao et al. 2024, section 4.3). Then
    `loss_tokens` held-out tokens go through the model with features' activations replaced by
    those that their explanations predict (section 4.4). There every feature is replaced; here too
    where `explained_features` are all that fire, and otherwise those not drawn keep their own.

    Baselines: an untrained dictionary, explained in the same way, by features of the density
    nearest to that of each of the dictionary's; and, for the method, the best rule by the token
    alone for the same features.

    Raises:
        NotMeaningful: the model does not predict the next token, or too few features fire.
    """
    lm, hookpoint = subject.lm, subject.dictionary.hookpoint
    if not lm.is_causal:
        raise NotMeaningful("patterns look back from a token: the model must predict the next one")
    tokens, count, loss_tokens = _sizes(subject)
    coders = [subject.dictionary.coder, subject.untrained]
    rows, firings = collect_firings(lm, subject.stream("train"), hookpoint, coders, tokens)
    features = _draw(firings, count, subject.seed)
    simulations = {
        name: _explain(subject, coder, features[name], rows, fired)
        for name, coder, fired in zip((DICTIONARY, UNTRAINED), coders, firings, strict=True)
    }
    rules = [token_rule(rows, firings[0], int(f)) for f in features[DICTIONARY]]
    simulations[RULE] = Simulation(coders[0], features[DICTIONARY], rules, rows, firings[0])
    if len(rules) == (firings[0].counts >= FEWEST).sum():
        simulations[DICTIONARY].replace_all()
        simulations[RULE].replace_all()
    rows, firings = collect_firings(lm, subject.stream("held_out"), hookpoint, coders, tokens)
    scores = {
        name: Scores(simulations[name], rows, firings[owner == UNTRAINED])
        for name, owner in _OWNER.items()
    }
    loss = _Loss(subject, simulations)
    if loss_tokens:
        loss.run(loss_tokens)
    return _result(subject, simulations, scores, loss, rows.n_tokens)


def _sizes(subject: Subject) -> tuple[int, int, int]:
    """Return tokens to learn from and to score on, features, and tokens for the loss."""
    return (
        subject.size("tokens", 32_768, 65_536, 262_144),
        subject.size("explained_features", 32, 64, 2_048),
        subject.size("loss_tokens", 4_096, 8_192, 32_768),
    )


def _cost(subject: Subject) -> int:
    tokens, features, loss_tokens = _sizes(subject)
    contexts = 2 * min(features, subject.dictionary.width) * EXEMPLARS
    return subject.fit_tokens + 2 * tokens + _TOKENS_A_CONTEXT * contexts + 8 * loss_tokens


def _draw(firings: list[Firings], count: int, seed: int) -> dict[str, np.ndarray]:
    """Draw features of the dictionary, and find for each one that fires as often untrained."""
    own, other = (np.flatnonzero(fired.counts >= FEWEST) for fired in firings)
    if min(len(own), len(other)) < _LEAST_FEATURES:
        raise NotMeaningful(
            f"only {len(own)} features, and {len(other)} untrained ones, fire on {FEWEST} or more "
            "of the training tokens looked at; `tokens` sets how many these are"
        )
    rng = np.random.default_rng(seed)
    drawn = rng.choice(own, min(count, len(own)), replace=False)
    wanted = firings[0].counts[drawn[: len(other)]]
    return {
        DICTIONARY: drawn,
        UNTRAINED: of_nearest_density(firings[1].counts, other, wanted),
    }


def of_nearest_density(counts: np.ndarray, features: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return for each count, in turn, the feature left over that fires nearest as often."""
    left = sorted((float(np.log(counts[f])), int(f)) for f in features)
    found = []
    for log in np.log(wanted).tolist():
        at = bisect.bisect(left, (log, -1))
        at -= at == len(left) or (at > 0 and log - left[at - 1][0] <= left[at][0] - log)
        found.append(left.pop(at)[1])
    return np.array(found)


def _explain(
    subject: Subject, coder: SparseCoder, features: np.ndarray, rows: TokenRows, firings: Firings
) -> Simulation:
    bos = _bos(subject)
    activate = activate_in(subject.lm, subject.dictionary.hookpoint, coder, bos=bos)
    graphs = explain_features(
        rows, firings, features.tolist(), activate, bos=bos, seed=subject.seed
    )
    return Simulation(coder, features, graphs, rows, firings)


def _bos(subject: Subject) -> int | None:
    return subject.stream("train").tokenizer.bos_token_id


class _Loss:
    """The model's loss with features as they are, as they are explained, and at their means."""

    def __init__(self, subject: Subject, simulations: dict[str, Simulation]) -> None:
        self.subject, self.simulations = subject, simulations
        kinds: tuple[Kind, ...] = ("own", "ablated")
        self.variants = [(kind, name) for name in dict.fromkeys(_OWNER.values()) for kind in kinds]
        self.variants += [("explained", name) for name in _OWNER]
        self.effect = LossEffect([f"{kind} {name}" for kind, name in self.variants])
        self.splices = Splices(subject.lm, subject.dictionary)
        self.documents: dict[str, int] = {}
        self.tokens = 0

    def run(self, tokens: int) -> None:
        with Task("loss", tokens) as task:
            for batch in self.subject.stream("held_out"):
                before = self.tokens
                self._add(batch)
                task.advance(self.tokens - before)
                if self.tokens >= tokens:
                    break

    def _add(self, batch: TokenBatch) -> None:
        rows = TokenRows.of(batch, _bos(self.subject), self.documents)
        batch = replace(batch, counted=torch.from_numpy(rows.counted))
        targets, counted = batch.next_tokens()
        groups = torch.from_numpy(rows.document)
        original, values = self.splices.original(batch)
        x = values[self.subject.dictionary.hookpoint]
        self.effect.update(original, self._replaced(batch, rows, x), targets, counted, groups)
        self.tokens += int(counted.sum())

    def _replaced(
        self, batch: TokenBatch, rows: TokenRows, x: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        for kind, name in self.variants:
            made, _ = self.simulations[name].reconstruct(kind, rows)(x)
            yield f"{kind} {name}", self.splices.spliced(batch, made)

    def figures(self, weights: np.ndarray) -> Figures:
        """Return each column's figures, for weights [draws, documents]."""
        ce = {name: figures["ce"] for name, figures in self.effect.resample(weights).items()}
        found = {}
        for name, owner in _OWNER.items():
            own, ablated = ce[f"own {owner}"], ce[f"ablated {owner}"]
            explained = ce[f"explained {name}"]
            kept = np.full(len(own), np.nan)
            np.divide(ablated - explained, ablated - own, out=kept, where=ablated != own)
            found[name] = {"ce": explained, "increase": explained - own, "kept": kept}
        return found

    def references(self) -> dict[str, float]:
        """Return the loss of the model by itself, and of every variant."""
        if not self.tokens:
            return {}
        return {name: figures["ce"] for name, figures in self.effect.compute().items()}


def _result(
    subject: Subject,
    simulations: dict[str, Simulation],
    scores: dict[str, Scores],
    loss: _Loss,
    tokens: int,
) -> SuiteResult:
    count = len(simulations[DICTIONARY].features)
    whole = bool(simulations[DICTIONARY].replaced.all())
    draws, seed = subject.draws, subject.seed

    def redraw(n: int) -> np.ndarray:
        if whole:
            return np.broadcast_to(np.arange(n), (draws, n))
        return np.random.default_rng(seed).integers(n, size=(draws, n))

    points = _figures(scores, loss, lambda n: np.ones((1, n)), lambda n: np.arange(n)[None])
    samples = _figures(scores, loss, lambda n: bootstrap_weights(n, draws, seed), redraw)
    rivals = {name: samples[name]["f1"] for name in (DICTIONARY, UNTRAINED)}
    judgements = judge("F1 of explanations", rivals, better="higher")
    rows = [_row(row, points, samples) for row in _ROWS if row[1] in points[DICTIONARY]]
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [Table(list(_OWNER), rows, "held-out text")],
        verdict=(
            f"{count} features explained by patterns of tokens, on {tokens:,} held-out tokens: "
            f"{told(judgements)}; F1 {points[DICTIONARY]['f1'][0]:.2f}, of the best rule by the "
            f"token alone {points[RULE]['f1'][0]:.2f}."
        ),
        judgements=judgements,
        context={
            "tokens": tokens,
            "loss_tokens": loss.tokens,
            "features": count,
            "replaced": {name: int(s.replaced.sum()) for name, s in simulations.items()},
            "predictions": {name: s.predictions for name, s in scores.items()},
            "cross_entropy": loss.references(),
            "interval": "95%, bootstrap over documents"
            + ("" if whole else " and features; of the loss over documents"),
        },
        series={"features": _features(subject, simulations[DICTIONARY], scores[DICTIONARY])},
    )


def _figures(
    scores: dict[str, Scores],
    loss: _Loss,
    weigh: Callable[[int], np.ndarray],
    choose: Callable[[int], np.ndarray],
) -> Figures:
    """Return every figure of each column.

    Args:
        scores: of features.
        loss: of the model.
        weigh: number of documents to weights [draws, documents].
        choose: number of features to indices [draws, features] of those averaged over.
    """
    found = {
        name: {
            figure: _average(figure, np.take_along_axis(v, choose(v.shape[1]), axis=1))
            for figure, v in score.figures(weigh(score.n_documents)).items()
        }
        for name, score in scores.items()
    }
    if loss.tokens:
        for name, figures in loss.figures(weigh(len(loss.documents))).items():
            found[name] |= figures
    return found


def _average(figure: str, values: np.ndarray) -> np.ndarray:
    """Return the mean over features, of lift the median; those that have none are left out."""
    average = np.ma.median if figure == "lift" else np.ma.mean
    return np.ma.filled(average(np.ma.masked_invalid(values), axis=1), np.nan)


def _row(row: tuple[str, str, str, Better, str], points: Figures, samples: Figures) -> MetricRow:
    title, key, unit, better, explanation = row
    values: list[MetricValue | None] = []
    for name in _OWNER:
        value, draws = float(points[name][key][0]), samples[name][key]
        low, high = interval({key: draws})[key]
        known = np.isfinite([value, *draws]).all()
        values.append(MetricValue(value, low, high) if known else None)
    return MetricRow(title, unit, better, explanation, values)


def _features(subject: Subject, simulation: Simulation, scores: Scores) -> list[dict[str, Any]]:
    """Return each feature's figures and patterns as JSON values."""
    tokenizer = subject.stream("train").tokenizer
    figures = scores.figures(np.ones((1, scores.n_documents)))
    found = []
    for i, (feature, graph) in enumerate(zip(simulation.features, simulation.graphs, strict=True)):
        values = {name: float(v[0, i]) for name, v in figures.items()}
        known = {name: v if np.isfinite(v) else None for name, v in values.items()}
        found.append({"feature": int(feature), **known, "ngrams": graph.ngrams(tokenizer)})
    return sorted(found, key=lambda f: f["feature"])


SUITE = Suite("explanations", "Explanations by patterns (N2G)", "standard", run, _cost)
