"""What a suite of the evaluation is given, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from monosemy.coders import Dictionary, SparseCoder
from monosemy.corpus import Corpus, Fact, LabelledCorpus, Part, Question, TokenStream
from monosemy.evaluation import baselines
from monosemy.evaluation.reader import Reader
from monosemy.evaluation.result import SuiteResult
from monosemy.evaluation.tasks import Tasks
from monosemy.lm import LM

Tier = Literal["quick", "standard", "full"]
"""How much is measured: a look, what a report needs, everything."""

T = TypeVar("T")


class NotMeaningful(Exception):
    """A suite would give a number that means nothing here; says why."""


@dataclass(frozen=True)
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
    labels: LabelledCorpus | None = None
    """Labelled text, for suites that ask what features know of it; None: concepts of the corpus."""
    checkpoints: Path | None = None
    """Folder of the model's checkpoints, for the share of pre-training compute."""
    forget: Corpus | None = None
    """Text that clamping features is to make the model worse at, for the suite `unlearning`."""
    questions: Sequence[Question] = ()
    """About what that text is about, and about other things, for the same suite."""
    facts: Sequence[Fact] = ()
    """About entities, for the suite `ravel`."""

    @cached_property
    def reader(self) -> Reader:
        """Text and its activations, for every suite."""
        return Reader(self.dictionary, self.lm, self.corpus)

    def stream(self, part: Part) -> TokenStream:
        """Return text cut into rows, and counted, as in training."""
        return self.reader.stream(part)

    @property
    def fit_tokens(self) -> int:
        """Training tokens that baselines are fitted on."""
        return max(baselines.FIT_TOKENS, baselines.FIT_TOKENS_A_DIMENSION * self.dictionary.d_in)

    @cached_property
    def sample(self) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens d_out"]]:
        """Activations of training text, for baselines: what is encoded, and what explained."""
        return self.reader.sample(self.fit_tokens)

    @cached_property
    def untrained(self) -> SparseCoder:
        """An untrained dictionary as wide as the subject's, of as many features a token."""
        d, (x, y) = self.dictionary, self.sample
        size = (d.width, max(round(d.l0), 1), self.seed + 1)
        if d.is_transcoder:
            return baselines.untrained_transcoder_coder(x, y, *size)
        return baselines.untrained_coder(x, *size)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` gave when this name was first asked for: suites share it."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    @cached_property
    def _kept(self) -> dict[str, Any]:
        return {}

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
