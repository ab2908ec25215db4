"""Measure a dictionary on held-out text, beside baselines, with intervals over documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosemy.activations import LiveActivations, counted_activations
from monosemy.coders import Dictionary, attach
from monosemy.corpus import Corpus, TokenBatch, TokenStream, open_corpus
from monosemy.errors import UserError
from monosemy.evaluation import baselines
from monosemy.evaluation.baselines import Reconstruct
from monosemy.evaluation.result import Evaluation
from monosemy.lm import LM
from monosemy.metrics import (
    FORMULAS,
    Activity,
    LossEffect,
    Reconstruction,
    bootstrap_weights,
    interval,
)
from monosemy.metrics.table import Better, MetricRow, MetricValue
from monosemy.progress import Task

FIT_TOKENS = 65_536
"""Training tokens that the baselines are fitted on."""

Baselines = dict[str, Reconstruct]

_ROWS: list[tuple[str, str, Better, str]] = [
    ("FVU", "fvu", "lower", "share of variance left unexplained, token-pooled; 1 = the mean"),
    ("FVU, mean over tokens", "token_fvu", "lower", "the same share token by token, averaged"),
    ("MSE", "mse", "lower", "mean squared error a dimension"),
    ("cosine", "cosine", "higher", "mean cosine of activation and reconstruction"),
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


def evaluate(
    dictionary: Dictionary | Any,
    lm: LM | None = None,
    data: Any = None,
    *,
    tokens: int = 65_536,
    loss_tokens: int = 16_384,
    draws: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Measure a dictionary on held-out documents beside its baselines.

    Reconstruction is measured on `tokens` tokens, the effect on the model's loss on the first
    `loss_tokens` of them: counted positions are replaced, and the loss counted is that of
    predicting the next token of the same document from them. Baselines are fitted on training
    documents. Intervals are 95%, from `draws` bootstrap draws of documents.

    A transcoder is measured by how well it predicts the activations at its target: errors are
    shares of their variance, and they are what is replaced, by what it makes of its input in the
    same forward pass. Its baselines predict them too.

    Args:
        dictionary: a dictionary, or a run.
        lm: the model; default the one the dictionary names.
        data: a corpus; default the one the dictionary was trained on.
        tokens: held-out tokens for reconstruction.
        loss_tokens: held-out tokens for the loss.
        draws: bootstrap draws.
        seed: of the untrained dictionary and the bootstrap.

    Raises:
        UserError: the dictionary does not fit the model, the model was loaded in part, there is
            no held-out text, or a transcoder's input comes after its target.
    """
    corpus = open_dictionary_corpus(dictionary, data)
    lm = lm or getattr(dictionary, "lm", None)
    dictionary = getattr(dictionary, "dictionary", dictionary)
    lm = lm or LM(dictionary.provenance.model, revision=dictionary.provenance.revision)
    if lm.is_causal:
        lm.require_whole("the effect on the loss cannot be measured")
    attach(dictionary, lm)
    stream = dictionary.provenance.stream
    fit = LiveActivations(
        lm, stream(lm, corpus, "train"), [dictionary.hookpoint, dictionary.explains]
    )
    rivals, mean = _fit_baselines(dictionary, fit, seed + 1)
    measured = _Measurement(dictionary, lm, rivals, mean)
    measured.run(stream(lm, corpus, "held_out"), tokens, loss_tokens)
    return measured.result(corpus, draws, seed)


def _fit_baselines(
    dictionary: Dictionary, fit: LiveActivations, seed: int
) -> tuple[Baselines, Tensor]:
    """Return what the dictionary must beat, and the mean of what it explains."""
    k, here, there = max(round(dictionary.l0), 1), dictionary.hookpoint, dictionary.explains
    rank = min(k, dictionary.d_in, dictionary.d_out)
    if not dictionary.is_transcoder:
        x = baselines.collect((v[here] for v in fit), FIT_TOKENS)
        return {
            f"PCA-{rank}": baselines.pca(x, rank),
            "untrained dictionary": baselines.untrained(x, dictionary.width, k, seed),
            f"{rank} largest neurons": baselines.raw_neurons(x, rank),
        }, x.mean(0)
    both = baselines.collect((torch.cat([v[here], v[there]], 1) for v in fit), FIT_TOKENS)
    x, y = (part.contiguous() for part in both.split([dictionary.d_in, dictionary.d_out], 1))
    linear, of_rank = baselines.linear_maps(x, y, rank)
    return {
        "linear map": linear,
        f"rank-{rank} linear map": of_rank,
        "untrained dictionary": baselines.untrained_transcoder(x, y, dictionary.width, k, seed),
    }, y.mean(0)


def open_dictionary_corpus(dictionary: Dictionary | Any, data: Any = None) -> Corpus:
    """Return the corpus given, or the one a dictionary or run was trained on.

    Raises:
        UserError: none is given and the dictionary's cannot be opened again.
    """
    if data is not None:
        return open_corpus(data)
    corpus = getattr(dictionary, "corpus", None)
    if corpus is not None:
        return corpus
    described = dictionary.provenance.corpus
    if not described or described["source"].startswith("python:"):
        raise UserError(
            "this dictionary was trained on text held in memory, which is gone",
            "say which text to use with `data` (--data)",
        )
    return open_corpus(**described)


class _Measurement:
    """The sums of the dictionary and its baselines over held-out text."""

    def __init__(self, dictionary: Dictionary, lm: LM, rivals: Baselines, mean: Tensor) -> None:
        self.dictionary, self.lm, self.rivals = dictionary, lm, rivals
        self.columns = ["dictionary", *rivals]
        ablations = {"mean": mean, "zero": torch.zeros_like(mean)}
        self.spliced = {
            "dictionary": baselines.of_dictionary(dictionary),
            **rivals,
            **{name: baselines.constant(value) for name, value in ablations.items()},
        }
        self.reconstructions = {name: Reconstruction(mean) for name in self.columns}
        self.without_skip = Reconstruction(mean)
        self.activity = Activity(dictionary.width)
        self.loss = LossEffect(list(self.spliced), ablations=list(ablations))
        self.documents: dict[str, int] = {}
        self.loss_tokens = 0

    def run(self, stream: TokenStream, tokens: int, loss_tokens: int) -> None:
        here, there = self.dictionary.hookpoint, self.dictionary.explains
        with Task("evaluate", tokens) as task:
            for batch in stream:
                groups = self._groups(batch)
                values = counted_activations(self.lm, batch, [here, there])
                self._reconstruct(values[here], values[there], groups[batch.counted])
                if self.loss_tokens < loss_tokens and self.lm.is_causal:
                    self._splice(batch, groups)
                task.advance(len(values[here]))
                if self.activity.n_tokens >= tokens:
                    break

    def _groups(self, batch: TokenBatch) -> Tensor:
        """Number the documents, the same through all batches; inserted tokens get 0."""
        numbers = [self.documents.setdefault(d.id, len(self.documents)) for d in batch.documents]
        return torch.tensor([*numbers, 0])[batch.document]

    @torch.no_grad()
    def _reconstruct(self, x: Tensor, y: Tensor, groups: Tensor) -> None:
        coder = self.dictionary.coder
        out, code = coder.reconstruct(x)
        self.activity.update(code.values, code.indices, len(x))
        self.reconstructions["dictionary"].update(y, out, code.l0, groups)
        if coder.W_skip is not None:
            # Held at its mean: left out altogether it would shift every prediction too.
            skipped = (x - self.dictionary.mean.to(x)) @ coder.W_skip.T
            self.without_skip.update(y, out - skipped, code.l0, groups)
        for name, reconstruct in self.rivals.items():
            self.reconstructions[name].update(y, *reconstruct(x), groups)

    def _splice(self, batch: TokenBatch, groups: Tensor) -> None:
        """Run the model once as it is and once with each reconstruction in place."""
        targets = batch.tokens.roll(-1, dims=1)
        same = batch.document.roll(-1, dims=1) == batch.document
        same[:, -1] = False
        counted = batch.counted & same
        original = self.lm.logits(batch.tokens, attention_mask=batch.attention_mask)
        self.loss.update(original.cpu(), self._variants(batch), targets, counted, groups)
        self.loss_tokens += int(counted.sum())

    def _variants(self, batch: TokenBatch) -> Iterator[tuple[str, Tensor]]:
        for name, reconstruct in self.spliced.items():
            yield name, self._logits_with(batch, reconstruct)

    def _logits_with(self, batch: TokenBatch, reconstruct: Reconstruct) -> Tensor:
        """Return logits with what is made of the input put in place of what it explains."""
        here, there = self.dictionary.hookpoint, self.dictionary.explains
        counted = batch.counted.to(self.lm.device)
        made: list[Tensor] = []

        def read(x: Tensor, tokens: Tensor | None) -> Tensor:
            made.append(reconstruct(x[counted].float())[0])
            return x

        def write(y: Tensor, tokens: Tensor | None) -> Tensor:
            if not made:
                raise UserError(
                    f"`{here}` comes after `{there}` in the model, so what is made of it cannot "
                    "take that one's place",
                    "a transcoder's input comes before its target; `loss_tokens=0` leaves the "
                    "effect on the loss out",
                )
            out = y.clone()
            out[counted] = made.pop().to(y.dtype)
            return out

        with self.lm.edit({here: read}), self.lm.edit({there: write}):
            return self.lm.logits(batch.tokens, attention_mask=batch.attention_mask).cpu()

    def result(self, corpus: Corpus, draws: int, seed: int) -> Evaluation:
        weights = bootstrap_weights(len(self.documents), draws, seed)
        points = {name: r.compute() for name, r in self.reconstructions.items()}
        samples = {name: r.resample(weights) for name, r in self.reconstructions.items()}
        if self.loss_tokens:
            self._add_loss(points, samples, weights)
        rows = [self._row(row, points, samples) for row in _ROWS if row[1] in points["dictionary"]]
        if self.dictionary.coder.W_skip is not None:
            rows.insert(1, self._skip_row(weights))
        rows += self._activity_rows()
        return Evaluation(
            columns=self.columns,
            rows=rows,
            verdict=verdict(
                samples,
                self.activity.n_tokens,
                len(self.documents),
                equal_l0=not self.dictionary.is_transcoder,
            ),
            context={
                "model": self.lm.name,
                "hookpoint": self.dictionary.hookpoint,
                "explains": self.dictionary.explains,
                "corpus": corpus.describe(),
                "part": "held_out",
                "tokens": self.activity.n_tokens,
                "loss_tokens": self.loss_tokens,
                "ce": self._reference_ce(),
                "documents": len(self.documents),
                "formulas": FORMULAS,
                "interval": "95%, bootstrap over documents",
                "draws": draws,
                "seed": seed,
            },
        )

    def _add_loss(self, points: dict, samples: dict, weights: np.ndarray) -> None:
        computed, resampled = self.loss.compute(), self.loss.resample(weights)
        for name in self.columns:
            for into, figures in ((points, computed), (samples, resampled)):
                increase = figures[name]["ce"] - figures["original"]["ce"]
                into[name].update(figures[name], ce_increase=increase)

    def _reference_ce(self) -> dict[str, float]:
        """Return the loss of the model by itself and with activations ablated."""
        if not self.loss_tokens:
            return {}
        computed = self.loss.compute()
        return {name: computed[name]["ce"] for name in ("original", "mean", "zero")}

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


def verdict(
    samples: Mapping[str, Mapping[str, np.ndarray]],
    tokens: int,
    documents: int,
    *,
    equal_l0: bool = True,
) -> str:
    """Say in words where the dictionary wins, ties or loses.

    A win or loss is a difference whose 95% interval, over documents, excludes zero.
    """
    judged = {"FVU": ("fvu", -1), "loss recovered": ("recovered_mean", 1)}
    said: dict[str, list[str]] = {}
    for title, (key, sign) in judged.items():
        if key in samples["dictionary"]:
            said.setdefault(_outcome(samples, key, sign), []).append(title)
    clauses = [f"on {_join(titles)} it {outcome}" for outcome, titles in said.items()]
    where = f"On {tokens:,} held-out tokens of {documents} documents"
    where += ", at equal L0" if equal_l0 else ""
    return f"{where}: {'; '.join(clauses)}."


def _outcome(samples: Mapping[str, Mapping[str, np.ndarray]], key: str, sign: int) -> str:
    """Say against which baselines one figure wins, ties and loses."""
    outcomes: dict[str, list[str]] = {"wins against": [], "ties with": [], "loses to": []}
    for name, figures in samples.items():
        if name == "dictionary":
            continue
        difference = {"d": sign * (samples["dictionary"][key] - figures[key])}
        low, high = interval(difference)["d"]
        outcome = "wins against" if low > 0 else "loses to" if high < 0 else "ties with"
        outcomes[outcome].append(name)
    return _join([f"{outcome} {_join(names)}" for outcome, names in outcomes.items() if names])


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
