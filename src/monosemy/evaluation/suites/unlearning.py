"""Whether clamping a few features makes the model worse at one kind of text and at no other.

SAEBench's unlearning (after Farrell et al. 2024, arXiv 2410.19278), with the loss on text beside or
in place of answers to questions, and its setting chosen on other text than it is measured on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.activations import counted_activations
from monosemy.coders import SparseCoder
from monosemy.corpus import Corpus, Part, TokenBatch, TokenStream
from monosemy.evaluation import questions
from monosemy.evaluation.result import Plot, SuiteResult, Table, judge, told
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.lm import LM, Edit
from monosemy.metrics import Activity, LossEffect, bootstrap_weights, interval
from monosemy.metrics.table import Better, MetricRow, MetricValue
from monosemy.progress import Task

RARE = (0.001, 0.01)
"""Share of other text on which a feature may fire to be clamped."""
COUNTS = (10, 20)
"""Features clamped."""
STRENGTHS = (1.0, 2.0, 4.0)
"""What they are set to where they fire: so many times their largest activation, below zero."""
HARM = 0.01
"""Rise of the loss on other text, as a share of it, that is allowed."""
FEWEST = 8
"""Held-out documents of either kind; half of them choose, half measure."""

DICTIONARY, UNTRAINED, MATCHED = "dictionary", "untrained dictionary", "matched features"
COLUMNS = [DICTIONARY, UNTRAINED, MATCHED]


@dataclass(frozen=True, slots=True)
class Clamp:
    """Features of a coder, and what each is set to where it fires."""

    coder: SparseCoder
    features: Int[Tensor, " n"]
    targets: Float[Tensor, " n"]

    @torch.no_grad()
    def change(self, z: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens d"]:
        """Return what is added to activations where these features are z; nothing where they are 0.

        What the dictionary does not explain stays in.
        """
        return torch.where(z > 0, self.targets - z, 0) @ self.coder.W_dec[self.features]

    def edit(self, lm: LM) -> Edit:
        """Return the edit that makes this change at every token that is not a special one."""
        special = torch.tensor(sorted(lm.special_ids), dtype=torch.long)

        def edit(x: Tensor, tokens: Tensor | None) -> Tensor:
            assert tokens is not None
            where = ~torch.isin(tokens, special.to(tokens.device))
            x = x.clone()
            with torch.no_grad():
                z = self.coder.encode(x[where].float())[:, self.features]
            x[where] += self.change(z).to(x.dtype)
            return x

        return edit


@dataclass(frozen=True, slots=True)
class _Firing:
    """How often a coder's features fire on either kind of text, and how much at most."""

    coder: SparseCoder
    forget: Float[Tensor, " width"]
    retain: Float[Tensor, " width"]
    largest: Float[Tensor, " width"]

    def choose(self, rare: float, count: int) -> Int[Tensor, " n"]:
        """Return the features most frequent on text to forget, of those rare on other text."""
        score = self.forget.masked_fill(self.retain >= rare, 0)
        features = score.topk(min(count, len(score))).indices
        return features[score[features] > 0]

    def matched(self, features: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Return as many other features, each as frequent on text to forget as can be found."""
        free = self.forget.clone()
        free[features] = torch.inf
        found = []
        for feature in features.tolist():
            nearest = int((free - self.forget[feature]).abs().argmin())
            free[nearest] = torch.inf
            found.append(nearest)
        return torch.tensor(found, dtype=torch.long)

    def clamp(self, features: Int[Tensor, " n"], strength: float) -> Clamp:
        return Clamp(self.coder, features, -strength * self.largest[features])


def run(subject: Subject) -> SuiteResult:
    """Clamp features of the text to forget, and measure the model's loss on it and on other text.

    Other text is the dictionary's own. Features that fire on less than 0.1% or 1% of its training
    part are ranked by how often they fire on the other's; the first 10 or 20 are set, where they
    fire, to -1 to -4 times their largest activation. Of these settings that is taken which does
    most harm to the text to forget, on half of the held-out documents, while the loss on other
    text rises by no more than 1%; figures are of the other half. Beside it the same with an
    untrained dictionary, and with features as frequent on the text to forget, whatever they do
    elsewhere. Intervals are 95%, from bootstrap draws of documents. Where there are questions, they
    are asked with the setting chosen on text.

    Raises:
        NotMeaningful: there is no text to forget or too little, the model predicts nothing, or the
            dictionary is a transcoder.
    """
    forget = _check(subject)
    texts = {"forget": _held_out(subject, forget), "retain": _held_out(subject, subject.corpus)}
    settings = _settings(subject, forget)
    with Task("unlearning", sum(map(len, texts.values())), "batches") as task:
        losses = {kind: _measure(subject, text, settings, task) for kind, text in texts.items()}
    documents = {kind: len(_documents(text)) for kind, text in texts.items()}
    return _result(subject, settings, losses, documents)


def _check(subject: Subject) -> Corpus:
    if subject.forget is None:
        raise NotMeaningful(
            "there is no text to forget: name some with --forget (`forget=open_corpus(...)` in "
            "Python)"
        )
    if not subject.lm.is_causal:
        raise NotMeaningful("the model predicts no next token, so it has no loss to raise")
    if subject.dictionary.is_transcoder:
        raise NotMeaningful("a transcoder's features are not clamped where they fire")
    return subject.forget


def _tokens(subject: Subject) -> int:
    return subject.size("unlearning_tokens", 2_048, 4_096, 8_192)


def _cost(subject: Subject) -> int:
    each = len(COLUMNS) * len(RARE) * len(COUNTS) * len(STRENGTHS)
    if subject.forget is None:
        return 0
    asked = sum(len(q.choices) * subject.lm.encode(q.question).shape[1] for q in subject.questions)
    return 2 * _tokens(subject) * (each + 6) + (1 + len(COLUMNS)) * asked


def _stream(subject: Subject, corpus: Corpus, part: Part) -> TokenStream:
    return subject.dictionary.provenance.stream(subject.lm, corpus, part)


def _settings(subject: Subject, forget: Corpus) -> dict[str, list[Clamp]]:
    """Return what to try, for each column; the order of settings is the same for all."""
    coders = {DICTIONARY: subject.dictionary.coder, UNTRAINED: subject.untrained}
    firing = _count(subject, coders, forget)
    found: dict[str, list[Clamp]] = {name: [] for name in COLUMNS}
    for rare, count, strength in itertools.product(RARE, COUNTS, STRENGTHS):
        for name, of in firing.items():
            found[name].append(of.clamp(of.choose(rare, count), strength))
        mine = firing[DICTIONARY]
        others = mine.matched(mine.choose(rare, count))
        found[MATCHED].append(mine.clamp(others, strength))
    return found


def _count(
    subject: Subject, coders: Mapping[str, SparseCoder], forget: Corpus
) -> dict[str, _Firing]:
    """Count firings on the training parts of both kinds of text."""
    hookpoint, wanted = subject.dictionary.hookpoint, 4 * _tokens(subject)
    seen: dict[str, list[Activity]] = {name: [] for name in coders}
    for corpus in (forget, subject.corpus):
        activities = {name: Activity(coder.width) for name, coder in coders.items()}
        tokens = 0
        for batch in _stream(subject, corpus, "train"):
            x = counted_activations(subject.lm, batch, [hookpoint])[hookpoint]
            for name, coder in coders.items():
                with torch.no_grad():
                    code = coder.encode_sparse(x)
                activities[name].update(code.values, code.indices, len(x))
            tokens += len(x)
            if tokens >= wanted:
                break
        for name, activity in activities.items():
            seen[name].append(activity)
    return {
        name: _Firing(
            coders[name], one.density, two.density, torch.maximum(one.max, two.max).float()
        )
        for name, (one, two) in seen.items()
    }


def _held_out(subject: Subject, corpus: Corpus) -> list[TokenBatch]:
    """Return held-out text.

    Raises:
        NotMeaningful: too few documents, of which half choose and half measure.
    """
    found, tokens = [], 0
    for batch in _stream(subject, corpus, "held_out"):
        found.append(batch)
        tokens += int(batch.counted.sum())
        if tokens >= _tokens(subject):
            break
    documents = len(_documents(found))
    if documents < FEWEST:
        raise NotMeaningful(
            f"{documents} held-out documents of {corpus.name} in {tokens:,} tokens; {FEWEST} are "
            "needed, to choose features on half of them"
        )
    return found


def _documents(text: Sequence[TokenBatch]) -> dict[str, int]:
    """Return a number for each document."""
    ids = dict.fromkeys(document.id for batch in text for document in batch.documents)
    return {id: number for number, id in enumerate(ids)}


def _measure(
    subject: Subject,
    text: Sequence[TokenBatch],
    settings: Mapping[str, Sequence[Clamp]],
    task: Task,
) -> LossEffect:
    """Return the losses with each setting."""
    names = [f"{name} {i}" for name in COLUMNS for i in range(len(settings[name]))]
    losses, documents = LossEffect(names), _documents(text)
    for batch in text:
        targets = batch.tokens.roll(-1, dims=1)
        same = batch.document.roll(-1, dims=1) == batch.document
        same[:, -1] = False
        groups = torch.tensor([*(documents[d.id] for d in batch.documents), 0])[batch.document]
        original = subject.lm.logits(batch.tokens, attention_mask=batch.attention_mask).cpu()
        variants = _variants(subject, batch, settings)
        losses.update(original, variants, targets, batch.counted & same, groups)
        task.advance(1)
    return losses


def _variants(
    subject: Subject, batch: TokenBatch, settings: Mapping[str, Sequence[Clamp]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the logits with each setting; codes are made once, before any is in force."""
    hookpoint = subject.dictionary.hookpoint
    x = counted_activations(subject.lm, batch, [hookpoint])[hookpoint]
    codes: dict[int, Tensor] = {}
    for name in COLUMNS:
        for i, clamp in enumerate(settings[name]):
            if id(clamp.coder) not in codes:
                with torch.no_grad():
                    codes[id(clamp.coder)] = clamp.coder.encode(x)
            change = clamp.change(codes[id(clamp.coder)][:, clamp.features])
            yield f"{name} {i}", _logits(subject, batch, change)


def _logits(subject: Subject, batch: TokenBatch, change: Float[Tensor, "tokens d"]) -> Tensor:
    """Return logits with something added to the activations of the counted tokens."""

    def edit(x: Tensor, tokens: Tensor | None) -> Tensor:
        x = x.clone()
        x[batch.counted.to(x.device)] += change.to(x.dtype)
        return x

    with subject.lm.edit({subject.dictionary.hookpoint: edit}):
        return subject.lm.logits(batch.tokens, attention_mask=batch.attention_mask).cpu()


def _rises(
    losses: LossEffect, weights: np.ndarray, names: Sequence[str]
) -> Float[np.ndarray, "draws settings"]:
    """Return the rise of the loss with each setting, as a share of it, in draws of documents."""
    figures = losses.resample(weights)
    base = figures["original"]["ce"]
    return np.stack([figures[name]["ce"] / base - 1 for name in names], 1)


def _halves(subject: Subject, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights of documents: of those that choose; of the others, then in draws of them."""
    half = np.arange(documents) % 2 == 1
    n = int(half.sum())
    measuring = np.zeros((1 + subject.draws, documents))
    drawn = bootstrap_weights(n, subject.draws, subject.seed)
    measuring[:, half] = np.concatenate([np.ones((1, n)), drawn])
    return (~half)[None].astype(np.float64), measuring


@dataclass(frozen=True, slots=True)
class _Chosen:
    """One column's setting, and what every setting does."""

    setting: int | None
    """Its number; None where none is allowed: then nothing is clamped, and nothing changes."""
    forget: Float[np.ndarray, " draws"]
    retain: Float[np.ndarray, " draws"]
    points: list[tuple[float, float]]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        losses: Mapping[str, LossEffect],
        halves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ) -> _Chosen:
        before = {kind: _rises(losses[kind], halves[kind][0], names)[0] for kind in losses}
        after = {kind: _rises(losses[kind], halves[kind][1], names) for kind in losses}
        allowed = np.where(before["retain"] <= HARM, before["forget"], -np.inf)
        best = int(allowed.argmax())
        points = sorted(zip(after["retain"][0].tolist(), after["forget"][0].tolist(), strict=True))
        if allowed[best] <= 0:
            nothing = np.zeros(len(after["forget"]))
            return cls(None, nothing, nothing, points)
        return cls(best, after["forget"][:, best], after["retain"][:, best], points)


def _result(
    subject: Subject,
    settings: Mapping[str, Sequence[Clamp]],
    losses: Mapping[str, LossEffect],
    documents: Mapping[str, int],
) -> SuiteResult:
    halves = {kind: _halves(subject, count) for kind, count in documents.items()}
    chosen = {
        column: _Chosen.of([f"{column} {i}" for i in range(len(clamps))], losses, halves)
        for column, clamps in settings.items()
    }
    forgotten = {column: one.forget for column, one in chosen.items()}
    rows = [
        _row(
            "loss on text to forget",
            "higher",
            "its rise on text to forget, as a share of it",
            forgotten,
        ),
        _row(
            "loss on other text",
            "lower",
            f"its rise on other text; the setting was chosen to keep it within {HARM:.0%}",
            {column: one.retain for column, one in chosen.items()},
        ),
    ]
    judged = {column: draws[1:] for column, draws in forgotten.items()}
    judgements = judge(rows[0].name, judged, better="higher")
    hookpoint = subject.dictionary.hookpoint
    asked = questions.ask(
        subject,
        {
            column: {}
            if one.setting is None
            else {hookpoint: settings[column][one.setting].edit(subject.lm)}
            for column, one in chosen.items()
        },
    )
    judgements += asked.judgements
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [Table(COLUMNS, rows, "held-out text"), *asked.tables],
        verdict=f"With the loss on other text kept within {HARM:.0%}: {told(judgements)}. "
        f"{asked.note}".strip(),
        judgements=judgements,
        context={
            "documents": dict(documents),
            "chosen": {
                column: _describe(settings[column], one.setting) for column, one in chosen.items()
            },
            "selection": "on half of the held-out documents; figures are of the other half",
            "interval": "95%, bootstrap over documents",
        },
        plots=[
            Plot(
                "What every setting does to either text",
                "rise of the loss on other text",
                "rise on text to forget",
                {name: [(x, y, y, y) for x, y in one.points] for name, one in chosen.items()},
            )
        ],
    )


def _row(
    title: str, better: Better, said: str, samples: Mapping[str, Float[np.ndarray, " draws"]]
) -> MetricRow:
    ends = interval({name: draws[1:] for name, draws in samples.items()})
    values = [MetricValue(float(samples[name][0]), *ends[name]) for name in COLUMNS]
    return MetricRow(title, "share", better, said, [*values])


def _describe(clamps: Sequence[Clamp], setting: int | None) -> dict[str, Any] | None:
    if setting is None:
        return None
    rare, _, strength = list(itertools.product(RARE, COUNTS, STRENGTHS))[setting]
    features = clamps[setting].features.tolist()
    return {"rarer_than": rare, "features": features, "strength": strength}


SUITE = Suite("unlearning", "Unlearning", "full", run, _cost)
