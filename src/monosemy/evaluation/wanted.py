"""What steering is meant to bring about, measured on what a steered model writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.corpus import CONCEPTS, parsable_part, syntax_spans
from monosemy.errors import UserError, nearest
from monosemy.lm import LM, Continuation, padded_right

ROWS = 64
"""Texts read in one pass."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was written after a prompt; a prefix of it, which no figure is of, is not in `prompt`.

    The tokens of `written` hold the prefix too.
    """

    prompt: str
    written: Continuation


@runtime_checkable
class Wanted(Protocol):
    """An effect that is wanted."""

    @property
    def name(self) -> str:
        """The effect in a few words, its unit among them."""
        ...

    def measure(self, lm: LM, samples: Sequence[Sample]) -> Float[np.ndarray, " samples"]:
        """Return the effect in each sample, while the model is steered."""
        ...


@dataclass(frozen=True, slots=True)
class Concept:
    """Whether the code that was written holds a concept of `CONCEPTS`: the parser says so.

    1 where a stretch of it begins in what was written, 0 elsewhere. Code that breaks off is closed
    first (`parsable_part`).
    """

    concept: str

    def __post_init__(self) -> None:
        if self.concept not in CONCEPTS:
            raise UserError(
                f"no concept `{self.concept}`",
                f"{nearest(self.concept, CONCEPTS)} all are in `monosemy.corpus.CONCEPTS`".strip(),
            )

    @property
    def name(self) -> str:
        return f"share with {self.concept}"

    def measure(self, lm: LM, samples: Sequence[Sample]) -> Float[np.ndarray, " samples"]:
        return concepts_in(samples, [self.concept])[:, 0]


def concepts_in(
    samples: Sequence[Sample], concepts: Sequence[str]
) -> Float[np.ndarray, "samples concepts"]:
    """Return 1 where a stretch of a concept begins in what was written, 0 elsewhere."""
    found = np.zeros((len(samples), len(concepts)))
    for row, sample in zip(found, samples, strict=True):
        closed, end = parsable_part(sample.prompt + sample.written.text)
        spans = syntax_spans(closed) or {}
        for column, concept in enumerate(concepts):
            starts = (start for start, _ in spans.get(concept, ()))
            row[column] = any(len(sample.prompt) <= start < end for start in starts)
    return found


@dataclass(frozen=True, slots=True)
class LogProbability:
    """The log-probability of given continuations of the prompt, each as a whole; their mean."""

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not all(self.texts) or not self.texts:
            raise UserError("a continuation is empty", "write at least one word")

    @property
    def name(self) -> str:
        return "log-probability, nats"

    def measure(self, lm: LM, samples: Sequence[Sample]) -> Float[np.ndarray, " samples"]:
        found = []
        for text in self.texts:
            ids = lm.encode(text)[0]
            ids = ids[1:] if int(ids[0]) in lm.special_ids else ids
            prompts = [sample.written.tokens[: sample.written.start] for sample in samples]
            rows = [torch.cat([prompt, ids]) for prompt in prompts]
            found.append(log_probabilities(lm, rows, [len(prompt) for prompt in prompts]))
        return np.mean([[float(row.sum()) for row in rows] for rows in found], 0)


@dataclass(frozen=True, slots=True, eq=False)
class Reencoded:
    """How strongly a feature fires on what was written, the steered model reading it again.

    Mean over the tokens written, in multiples of the feature's strength. Of the dictionary that
    steers, it says how much of what was asked for its encoder sees; of a later one, what arrives.
    Features of a transcoder fire before they write: of the one that steers, it says how much the
    text that was written makes the feature fire by itself.
    """

    dictionary: Dictionary
    feature: int

    def __post_init__(self) -> None:
        self.dictionary.check_scales({self.feature: 1.0})

    @property
    def name(self) -> str:
        return f"activation of {self.feature} at {self.dictionary.hookpoint}, of its largest"

    @torch.no_grad()
    def measure(self, lm: LM, samples: Sequence[Sample]) -> Float[np.ndarray, " samples"]:
        point, found = self.dictionary.hookpoint, []
        rows = [sample.written.tokens for sample in samples]
        starts = [sample.written.start for sample in samples]
        for tokens, mask, new in reading(lm, rows, starts):
            x = lm.capture(tokens, [point], attention_mask=mask)[point]
            z = self.dictionary.coder.encode_sparse(x[new].float())
            fires = z.indices == self.feature
            each = torch.zeros(int(new.sum()), dtype=torch.float64, device=x.device)
            each[z.tokens[fires]] = z.values[fires].double()
            sums = torch.zeros(new.shape, dtype=torch.float64, device=x.device)
            sums = sums.masked_scatter(new, each).sum(1) / new.sum(1).clamp_min(1)
            found.append(sums.cpu())
        return (torch.cat(found) / float(self.dictionary.strength[self.feature])).numpy()


def log_probabilities(
    lm: LM, rows: Sequence[Int[Tensor, " _"]], starts: Sequence[int]
) -> list[Float[Tensor, " _"]]:
    """Return the log-probability of each token of texts from a place on, in nats."""
    found = []
    for tokens, mask, new in reading(lm, rows, starts):
        logits = lm.logits(tokens, attention_mask=mask)[:, :-1].float()
        each = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].double().cpu()
        found += [row[which] for row, which in zip(each, new[:, 1:].cpu(), strict=True)]
    return found


def reading(
    lm: LM, rows: Sequence[Int[Tensor, " _"]], starts: Sequence[int]
) -> Iterator[
    tuple[
        Int[Tensor, "rows time"],
        Bool[Tensor, "rows time"],
        Bool[Tensor, "rows time"],
    ]
]:
    """Yield texts in batches, padded at the end: ids, attention mask, and what comes after starts.

    While a batch is out, the model knows what its prompts are.
    """
    for first in range(0, len(rows), ROWS):
        some = [row.to(lm.device) for row in rows[first : first + ROWS]]
        begun = torch.tensor(starts[first : first + ROWS], device=lm.device)
        tokens, mask = padded_right(some)
        place = torch.arange(tokens.shape[1], device=lm.device)
        with lm.prompted(begun):
            yield tokens, mask, mask & (place >= begun[:, None])
