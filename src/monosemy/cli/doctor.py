"""Replay a dictionary's fingerprint on a model; say what is wired wrongly, and where it fits."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from monosemy.cli.console import console, open_dictionary
from monosemy.coders import Diagnosis, diagnose


@dataclass(frozen=True)
class Command:
    """Options of `monosemy doctor`."""

    dictionary: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DICT")]
    """A run or a dictionary."""
    model: str | None = None
    """Model to try it on; default the one it was trained on."""
    hookpoint: str | None = None
    """Hook point to try; default the one it was trained at."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the figures and the finding; exit with status 1 if something is wrong."""
        dictionary, lm = open_dictionary(self.dictionary, self.model, self.device)
        found = diagnose(dictionary, lm, self.hookpoint)
        console.print(_table(found))
        if found.healthy:
            console.print(f"healthy: {found.explanation}")
            return
        console.print(f"wrong {found.cause}: {found.explanation}", style="bold")
        console.print(found.advice)
        sys.exit(1)


def _table(found: Diagnosis) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("", "FVU", "L0", "same strongest feature"):
        table.add_column(title, justify="left" if not title else "right")
    rows = {"expected": found.expected, f"at {found.hookpoint}": found.observed}
    rows |= {f"at {name}": figures for name, figures in found.elsewhere.items()}
    for name, f in rows.items():
        if f is None:
            table.add_row(name, "other width")
        else:
            table.add_row(name, f"{f.fvu:.3f}", f"{f.l0:.1f}", f"{f.agreement:.0%}")
    return table
