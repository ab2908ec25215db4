"""Reconstruction, and its effect on the model's loss, on held-out text beside baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.corpus import TokenBatch
from monosemy.evaluation import baselines
from monosemy.evaluation.baselines import Reconstruct
from monosemy.evaluation.breakdown import ErrorsByKind, Kinds
from monosemy.evaluation.reader import Reader
from monosemy.evaluation.result import Judgement, SuiteResult, Table, judge, told
from monosemy.evaluation.splice import Splices
from monosemy.evaluation.subject import Subject, Suite
from monosemy.lm import LM
from monosemy.metrics import (
    Activity,
    LossEffect,
    Reconstruction,
    bootstrap_weights,
    interval,
)
from monosemy.metrics.table import Better, MetricRow, MetricValue
from monosemy.progress import Task

Baselines = dict[str, Reconstruct]

_JUDGED: dict[str, tuple[str, Literal["lower", "higher"]]] = {
    "FVU": ("fvu", "lower"),
    "loss recovered": ("recovered_mean", "higher"),
}

_ROWS: list[tuple[str, str, Better, str]] = [
    ("FVU", "fvu", "lower", "share of variance left unexplained, token-pooled; 1 = the mean"),
    ("FVU, mean over tokens", "token_fvu", "lower", "the same share token by token, averaged"),
    ("MSE", "mse", "lower", "mean squared error a dimension"),
    ("cosine", "cosine", "higher", "mean cosine of activation and reconstruction"),
    ("L2 ratio", "l2_ratio", "", "mean length of the reconstruction over that of the activation"),
    ("L2 ratio, centred", "l2_ratio_centred", "", "the same about the mean; below 1 = shrinkage"),
    (
        "relative bias",
        "relative_bias",
        "",
        "what reconstructions must be divided by to be nearest; below 1 = shrinkage",
    ),
    (
        "relative bias, centred",
        "relative_bias_centred",
        "",
        "the same about the mean; 1 for a projection such as PCA",
    ),
    ("L0", "l0", "", "numbers used a token: features, components or coordinates"),
    ("CE", "ce", "lower", "next-token loss with it spliced in, nats"),
    ("CE increase", "ce_increase", "lower", "rise of next-token loss, nats, when spliced in"),
    (
        "loss recovered (mean)",
        "recovered_mean",
        "higher",
        "1 = no harm; 0 = as the mean activation",
    ),
    ("loss recovered (zero)", "recovered_zero", "higher", "1 = no harm; 0 = as zero activations"),
    ("KL", "kl", "lower", "divergence of next-token predictions from the model's own, nats"),
]


def run(subject: Subject) -> SuiteResult:
    """Measure reconstruction, and what the model loses with it in place, beside baselines.

    Reconstruction is measured on `tokens` tokens, the effect on the model's loss on the first
    `loss_tokens` of them: counted positions are replaced, and the loss counted is that of
    predicting the next token of the same document from them. Baselines are fitted on training
    documents. Intervals are 95%, from bootstrap draws of documents.

    A transcoder is measured by how well it predicts the activations at its target: errors are
    shares of their variance, and they are what is replaced, by what it makes of its input in the
    same forward pass. Its baselines predict them too.

    Raises:
        UserError: a transcoder's input comes after its target.
    """
    dictionary, lm = subject.dictionary, subject.lm
    rivals, mean = fit_baselines(subject)
    measured = _Measurement(dictionary, lm, rivals, mean, _kinds(subject))
    measured.run(subject.reader, *_sizes(subject))
    return measured.result(subject.draws, subject.seed)


def _sizes(subject: Subject) -> tuple[int, int]:
    """Return the tokens for reconstruction and for the loss."""
    tokens = subject.size("tokens", 16_384, 65_536, 262_144)
    return tokens, subject.size("loss_tokens", 4_096, 16_384, 65_536)


def _cost(subject: Subject) -> int:
    tokens, loss_tokens = _sizes(subject)
    return subject.fit_tokens + tokens + 7 * loss_tokens


def fit_baselines(subject: Subject) -> tuple[Baselines, Tensor]:
    """Return what the dictionary must beat, and the mean of what it explains."""
    dictionary, (x, y) = subject.dictionary, subject.sample
    k = max(round(dictionary.l0), 1)
    rank = min(k, dictionary.d_in, dictionary.d_out)
    untrained = baselines.of_coder(subject.untrained)
    if not dictionary.is_transcoder:
        return {
            f"PCA-{rank}": baselines.pca(x, rank),
            "untrained dictionary": untrained,
            f"{rank} largest neurons": baselines.raw_neurons(x, rank),
        }, x.mean(0)
    linear, of_rank = baselines.linear_maps(x, y, rank)
    return {
        "linear map": linear,
        f"rank-{rank} linear map": of_rank,
        "untrained dictionary": untrained,
    }, y.mean(0)


def _kinds(subject: Subject) -> Kinds:
    """Return how tokens are divided, by the text that baselines are fitted on."""
    found: list[Tensor] = []
    for batch in subject.stream("train"):
        found.append(batch.tokens[batch.counted])
        if sum(map(len, found)) >= subject.fit_tokens:
            break
    context = subject.dictionary.provenance.context
    return Kinds(context, torch.cat(found), len(subject.stream("train").tokenizer))


class _Measurement:
    """The sums of the dictionary and its baselines over held-out text."""

    def __init__(
        self, dictionary: Dictionary, lm: LM, rivals: Baselines, mean: Tensor, kinds: Kinds
    ) -> None:
        self.dictionary, self.lm, self.rivals = dictionary, lm, rivals
        self.columns = ["dictionary", *rivals]
        self.ablations = {"mean": mean, "zero": torch.zeros_like(mean)}
        self.splices = Splices(lm, dictionary)
        self.reconstructions = {name: Reconstruction(mean) for name in self.columns}
        self.without_skip = Reconstruction(mean)
        self.activity = Activity(dictionary.width)
        self.loss = LossEffect([*self.columns, *self.ablations], list(self.ablations))
        self.by_kind = ErrorsByKind(kinds, self.columns)
        self.documents: dict[str, int] = {}
        self.loss_tokens = 0

    def run(self, reader: Reader, tokens: int, loss_tokens: int) -> None:
        here, there = self.dictionary.hookpoint, self.dictionary.explains
        with Task("evaluate", tokens) as task:
            for batch in reader.stream("held_out"):
                groups = batch.numbers(self.documents)
                if self.loss_tokens < loss_tokens and self.lm.is_causal:
                    original, values = self.splices.original(batch)
                    reader.keep(batch, values)
                    made = self._reconstruct(values[here], values[there], batch, groups)
                    self._splice(batch, groups, original, made | self.ablations)
                else:
                    values = reader.activations(batch)
                    self._reconstruct(values[here], values[there], batch, groups)
                task.advance(len(values[here]))
                if self.activity.n_tokens >= tokens:
                    break

    @torch.no_grad()
    def _reconstruct(
        self, x: Tensor, y: Tensor, batch: TokenBatch, groups: Tensor
    ) -> dict[str, Tensor]:
        """Add a batch to the sums; return what each column makes of it."""
        coder, of_counted = self.dictionary.coder, groups[batch.counted]
        out, code = coder.reconstruct(x)
        self.activity.update(code.values, code.indices, len(x))
        if coder.W_skip is not None:
            # Held at its mean: left out altogether it would shift every prediction too.
            skipped = (x - self.dictionary.mean.to(x)) @ coder.W_skip.T
            self.without_skip.update(y, out - skipped, code.l0, of_counted)
        made = {"dictionary": (out, code.l0)}
        made |= {name: reconstruct(x) for name, reconstruct in self.rivals.items()}
        for name, (values, used) in made.items():
            self.reconstructions[name].update(y, values, used, of_counted)
        errors = [_squares(values - y) for values, _ in made.values()]
        spread = _squares(y - self.ablations["mean"].to(y))
        self.by_kind.add_errors(batch, groups, spread, errors)
        return {name: values for name, (values, _) in made.items()}

    def _splice(
        self, batch: TokenBatch, groups: Tensor, original: Tensor, made: Mapping[str, Tensor]
    ) -> None:
        """Add what the model predicts with each reconstruction in place of the activations."""
        targets, counted = batch.next_tokens()
        spliced = ((name, self.splices.spliced(batch, values)) for name, values in made.items())
        rows = self.loss.update(original, spliced, targets, counted, groups)
        own = 2 + 2 * len(self.columns)
        self.by_kind.add_losses(batch, groups, counted, rows[:, [0, 1, *range(2, own, 2)]])
        self.loss_tokens += int(counted.sum())

    def result(self, draws: int, seed: int) -> SuiteResult:
        weights = bootstrap_weights(len(self.documents), draws, seed)
        points = {name: r.compute() for name, r in self.reconstructions.items()}
        samples = {name: r.resample(weights) for name, r in self.reconstructions.items()}
        if self.loss_tokens:
            self._add_loss(points, samples, weights)
        rows = [self._row(row, points, samples) for row in _ROWS if row[1] in points["dictionary"]]
        if self.dictionary.coder.W_skip is not None:
            rows.insert(1, self._skip_row(weights))
        rows += self._activity_rows()
        judgements = judgements_of(samples)
        where = f"On {self.activity.n_tokens:,} held-out tokens of {len(self.documents)} documents"
        where += "" if self.dictionary.is_transcoder else ", at equal L0"
        return SuiteResult(
            SUITE.name,
            SUITE.title,
            [Table(self.columns, rows, "held-out text"), *self.by_kind.tables(weights)],
            verdict=f"{where}: {told(judgements)}.",
            judgements=judgements,
            context={
                "tokens": self.activity.n_tokens,
                "loss_tokens": self.loss_tokens,
                "ce": self._references("ce", ["original", *self.ablations]),
                "kl": self._references("kl", list(self.ablations)),
                "documents": len(self.documents),
                "interval": "95%, bootstrap over documents",
            },
        )

    def _add_loss(self, points: dict, samples: dict, weights: np.ndarray) -> None:
        computed, resampled = self.loss.compute(), self.loss.resample(weights)
        for name in self.columns:
            for into, figures in ((points, computed), (samples, resampled)):
                increase = figures[name]["ce"] - figures["original"]["ce"]
                into[name].update(figures[name], ce_increase=increase)

    def _references(self, figure: str, names: Sequence[str]) -> dict[str, float]:
        """Return a figure of the model by itself, or with activations ablated."""
        if not self.loss_tokens:
            return {}
        computed = self.loss.compute()
        return {name: computed[name][figure] for name in names}

    def _row(self, row: tuple[str, str, Better, str], points: dict, samples: dict) -> MetricRow:
        title, key, better, explanation = row
        values: list[MetricValue | None] = []
        for name in self.columns:
            low, high = interval({key: samples[name][key]})[key]
            values.append(MetricValue(points[name][key], low, high))
        if key == "l0" and self.dictionary.coder.W_skip is not None:
            explanation += "; the linear path beside features is not counted"
        unit = "nats" if key in ("ce", "ce_increase", "kl") else ""
        return MetricRow(title, unit, better, explanation, values)

    def _skip_row(self, weights: np.ndarray) -> MetricRow:
        value = self.without_skip.compute()["fvu"]
        low, high = interval({"fvu": self.without_skip.resample(weights)["fvu"]})["fvu"]
        return MetricRow(
            "FVU without skip path",
            "",
            "lower",
            "of the features alone, the linear path held at its mean",
            [MetricValue(value, low, high), *[None] * len(self.rivals)],
        )

    def _activity_rows(self) -> list[MetricRow]:
        nothing: list[MetricValue | None] = [None] * len(self.rivals)
        dead = self.activity.dead_share
        alive = self.activity.density[self.activity.counts > 0]
        density = float(alive.median()) if len(alive) else 0.0
        return [
            MetricRow(
                "dead share",
                "",
                "lower",
                f"features that fired on none of {self.activity.n_tokens:,} tokens",
                [MetricValue(dead, dead, dead), *nothing],
            ),
            MetricRow(
                "median density",
                "",
                "",
                "share of tokens on which the median live feature fires",
                [MetricValue(density, density, density), *nothing],
            ),
        ]


def _squares(x: Float[Tensor, "tokens d"]) -> Float[Tensor, " tokens"]:
    return torch.linalg.vector_norm(x, dim=1).square()


def judgements_of(samples: Mapping[str, Mapping[str, np.ndarray]]) -> list[Judgement]:
    """Hold the figures that count against every baseline's."""
    judged: list[Judgement] = []
    for figure, (key, better) in _JUDGED.items():
        if key in samples["dictionary"]:
            draws = {name: figures[key] for name, figures in samples.items()}
            judged += judge(figure, draws, better=better)
    return judged


SUITE = Suite("reconstruction", "Reconstruction", "quick", run, _cost)
