"""What a suite of the evaluation is given, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from monosemy.coders import Dictionary
from monosemy.corpus import Corpus, Part, TokenStream
from monosemy.evaluation.result import SuiteResult
from monosemy.evaluation.tasks import Tasks
from monosemy.lm import LM

Tier = Literal["quick", "standard", "full"]
"""How much is measured: a look, what a report needs, everything."""

T = TypeVar("T")


class NotMeaningful(Exception):
    """A suite would give a number that means nothing here; says why."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A dictionary in its model, on text, and how thoroughly it is to be measured."""

    dictionary: Dictionary
    lm: LM
    corpus: Corpus
    tier: Tier = "standard"
    seed: int = 0
    """Of everything drawn at random."""
    draws: int = 1000
    """Of the bootstrap that intervals come from."""
    tasks: Tasks | None = None
    """Of `lm-eval`, for the suite that scores them."""
    sizes: Mapping[str, Any] | None = None
    """Numbers that replace a suite's own, by name, such as `tokens`."""
    others: Sequence[Dictionary] = ()
    """Dictionaries of the same activations to compare it with, such as those of other seeds."""

    def stream(self, part: Part) -> TokenStream:
        """Return text cut into rows, and counted, as in training."""
        return self.dictionary.provenance.stream(self.lm, self.corpus, part)

    def size(self, name: str, quick: T, standard: T, full: T) -> T:
        """Return how much of something is measured at this tier, or as asked."""
        if self.sizes and name in self.sizes:
            return self.sizes[name]
        return {"quick": quick, "standard": standard, "full": full}[self.tier]


@dataclass(frozen=True, slots=True)
class Suite:
    """One kind of question, with its answer.

    `run` raises `NotMeaningful` where no number would mean anything; `cost` says how many tokens
    go through the model, whole passes counted.
    """

    name: str
    title: str
    tier: Tier
    """The least thorough tier that it is part of."""
    run: Callable[[Subject], SuiteResult]
    cost: Callable[[Subject], int]
