"""Measure what turning a feature up does, and what it costs, strength by strength."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from monosemy.artefact import write_text
from monosemy.cli.console import console, open_dictionary, open_text
from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.evaluation.dose import (
    STRENGTHS,
    Dose,
    DoseResponse,
    Writing,
    clamping,
    dose_response,
    prompted,
    raising,
    random_direction,
    random_feature,
)
from monosemy.evaluation.neutral import Neutral
from monosemy.evaluation.openings import openings
from monosemy.evaluation.wanted import Concept, LogProbability, Reencoded, Wanted
from monosemy.metrics.table import MetricValue
from monosemy.report.numbers import MISSING, figure, percent

_FILE = "dose.json"


@dataclass(frozen=True)
class Command:
    """Options of `monosemy dose`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run or a dictionary."""
    feature: int
    """Number of the feature."""
    strengths: tuple[float, ...] = STRENGTHS
    """Multiples of its largest activation that are added at every token; 0 is always measured."""
    clamp: bool = False
    """Set the activation instead of adding to it; strength 0 then ablates."""
    concept: str | None = None
    """What is wanted: that code written holds this concept, such as `docstring`."""
    continuation: tuple[str, ...] = ()
    """What is wanted: that these texts become likely after the prompts."""
    later: Path | None = None
    """What is wanted: that a feature of this other dictionary fires; its number is `--target`.
    Without any of these three, that the feature itself fires, as its own encoder sees it."""
    target: int | None = None
    """Number of the feature of the dictionary `--later`."""
    prefix: str | None = None
    """Text in front of the prompts: prompting for the same effect, to compare with."""
    budget: float = 0.1
    """The best dose is sought up to this KL on neutral text, nats a token."""
    prompts: Path | None = None
    """File of prompts, one a line; default beginnings of held-out text."""
    count: int = 20
    """Prompts at most."""
    tokens: int = 40
    """Tokens to write after each prompt."""
    neutral: int = 4096
    """Tokens of held-out text, about, that side effects are measured on."""
    temperature: float = 0.7
    """0 takes the likeliest token each time."""
    seed: int = 0
    """Of the draws, and of the random direction and feature."""
    data: str | None = None
    """Another corpus than the one it was trained on."""
    column: str | None = None
    """The corpus's column of text."""
    model: str | None = None
    """Another model than the one it was trained on."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the curve, those of a random direction and feature, and the best dose of each."""
        self._check()
        asked = self._prompts()
        dictionary, lm = open_dictionary(self.run_folder, self.model, self.device)
        wanted = self._wanted(dictionary)
        corpus = open_text(dictionary, self.data, self.column)
        prompts = asked or [text.text for text in openings(corpus, self.count)]
        neutral = Neutral(
            lm, dictionary.provenance.stream(lm, corpus, "held_out"), tokens=self.neutral
        )
        writing = Writing(self.tokens, self.temperature, seed=self.seed)
        strengths = (0.0, *self.strengths)
        make = clamping if self.clamp else raising
        families = [
            make(dictionary, self.feature),
            random_direction(dictionary, self.feature, self.seed),
            random_feature(dictionary, self.feature, self.seed),
        ]
        curves = [
            dose_response(
                lm, family, wanted, prompts, neutral, strengths=strengths, writing=writing
            )
            for family in families
        ]
        for curve in curves:
            console.print(dose_table(curve))
            console.print()
        best = [(curve.name, _best(curve, self.budget)) for curve in curves]
        if self.prefix is not None:
            best.append(
                ("prefix", prompted(lm, self.prefix, wanted, prompts, neutral, writing=writing))
            )
        console.print(f"the best with a KL of at most {self.budget:g}", style="bold")
        console.print(_best_table(wanted.name, best))
        values = {
            "feature": self.feature,
            "budget": self.budget,
            "prompts": prompts,
            "neutral": {"tokens": neutral.tokens, "documents": neutral.documents},
            "curves": [curve.to_dict() for curve in curves],
            "best": {name: dose and dose.to_dict() for name, dose in best},
        }
        path = self.run_folder / _FILE
        write_text(path, json.dumps(values, indent=2) + "\n")
        console.print(f"written: {path}", style="dim")

    def _check(self) -> None:
        """Refuse what does not go together, before a model is loaded."""
        asked = [self.concept, self.continuation or None, self.later]
        if sum(each is not None for each in asked) > 1:
            raise UserError(
                "several effects are wanted", "give one of --concept, --continuation, --later"
            )
        if (self.later is None) != (self.target is None):
            raise UserError("--later and --target go together", "give both or neither")
        if self.concept is not None:
            Concept(self.concept)

    def _wanted(self, dictionary: Dictionary) -> Wanted:
        if self.concept is not None:
            return Concept(self.concept)
        if self.continuation:
            return LogProbability(self.continuation)
        if self.later is not None and self.target is not None:
            later = Dictionary.from_pretrained(self.later)
            return Reencoded(later.to(dictionary.coder.W_dec.device), self.target)
        return Reencoded(dictionary, self.feature)

    def _prompts(self) -> list[str]:
        if self.prompts is None:
            return []
        try:
            lines = self.prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read `{self.prompts}`: {error}", "give a text file") from error
        found = [line for line in lines if line.strip()][: self.count]
        if not found:
            raise UserError(f"`{self.prompts}` holds no prompt", "write one a line")
        return found


def dose_table(curve: DoseResponse) -> Table:
    """One line a strength: the effect, and what it costs."""
    table = Table(
        box=None, pad_edge=False, header_style="dim", title=f"{curve.name}, at {curve.hookpoint}"
    )
    table.title_justify = "left"
    for name in _headings("strength", curve.effect):
        table.add_column(name, justify="right")
    for dose in curve.doses:
        table.add_row(f"{dose.strength:g}", *_cells(dose))
    return table


def _best_table(effect: str, best: list[tuple[str, Dose | None]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for name in _headings("strength", effect):
        table.add_column(name, justify="right")
    for name, dose in best:
        if dose is None:
            table.add_row(name, "every strength costs more")
        else:
            table.add_row(name, f"{dose.strength:g}", *_cells(dose))
    return table


def _best(curve: DoseResponse, budget: float) -> Dose | None:
    try:
        return curve.best(budget)
    except UserError:
        return None


def _headings(first: str, effect: str) -> tuple[str, ...]:
    return (
        first,
        effect,
        "KL",
        "CE rise",
        "top-1 changed",
        "perplexity",
        "distinct-2",
        "unparsed",
    )


def _cells(dose: Dose) -> list[str]:
    wanted = dose.wanted
    return [
        f"{figure(wanted.value)} ({figure(wanted.low)} to {figure(wanted.high)})",
        figure(dose.kl.value),
        figure(dose.ce.value),
        percent(dose.top1.value),
        figure(dose.perplexity.value),
        _share(dose.distinct),
        MISSING if dose.unparsed is None else _share(dose.unparsed),
    ]


def _share(value: MetricValue) -> str:
    return percent(value.value)
