"""Replay a dictionary's fingerprint on a model; say what is wired wrongly, and where it fits."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from monosemy.cli.console import console, open_dictionary, open_model
from monosemy.coders import Diagnosis, Dictionary, diagnose, meet
from monosemy.coders.dictionary import folder_of
from monosemy.corpus import open_corpus
from monosemy.errors import UserError
from monosemy.report.numbers import MISSING


@dataclass(frozen=True)
class Command:
    """Options of `monosemy doctor`."""

    dictionary: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DICT")]
    """A run or a dictionary."""
    model: str | None = None
    """Model to try it on; default the one it was trained on."""
    hookpoint: str | None = None
    """Hook point to try; default the one it was trained at."""
    data: str | None = None
    """At the first meeting with another tool's dictionary: text to measure it on; default the
    standard library's source, which comes with monosemy."""
    column: str | None = None
    """Column of `data` that holds the text."""
    insist: bool = False
    """At the first meeting: record a fingerprint even where the dictionary does not seem to fit."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the figures and the finding; exit with status 1 if something is wrong."""
        found = self._examine()
        console.print(_table(found))
        if found.healthy:
            console.print(f"healthy: {found.explanation}")
            return
        console.print(f"wrong {found.cause}: {found.explanation}", style="bold")
        console.print(found.advice)
        sys.exit(1)

    def _examine(self) -> Diagnosis:
        """Replay the fingerprint; record one where another tool's dictionary has none yet."""
        dictionary = Dictionary.from_pretrained(self.dictionary)
        is_first = dictionary.fingerprint is None and dictionary.belongs_to_model
        if not is_first:
            if self.data is not None:
                raise UserError(
                    "the dictionary has a fingerprint already", "--data is for those without one"
                )
            return diagnose(
                *open_dictionary(self.dictionary, self.model, self.device), self.hookpoint
            )
        lm = open_model(dictionary, self.model, self.device)
        text = None if self.data is None else open_corpus(self.data, column=self.column)
        found = meet(dictionary, lm, text, self.hookpoint, insist=self.insist)
        if dictionary.fingerprint is not None:
            dictionary.save_pretrained(folder_of(self.dictionary))
            console.print("met for the first time: a fingerprint is recorded", style="dim")
        return found


def _table(found: Diagnosis) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("", "FVU", "L0", "same strongest feature"):
        table.add_column(title, justify="left" if not title else "right")
    rows = {f"at {found.hookpoint}": found.observed}
    if found.expected is not None:
        rows = {"expected": found.expected, **rows}
    rows |= {f"at {name}": figures for name, figures in found.elsewhere.items()}
    for name, f in rows.items():
        if f is None:
            table.add_row(name, "other width")
        else:
            same = MISSING if found.expected is None else f"{f.agreement:.0%}"
            table.add_row(name, f"{f.fvu:.3f}", f"{f.l0:.1f}", same)
    return table
