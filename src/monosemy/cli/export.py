"""Write a dictionary in another tool's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.cli.console import console
from monosemy.formats import export, load


@dataclass(frozen=True)
class Command:
    """Options of `monosemy export`."""

    dictionary: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DICT")]
    """A run or a dictionary, of any format that can be read."""
    to: str
    """The format: `sparsify` and others."""
    out: Path
    """Folder to write to, new or empty."""

    def run(self) -> None:
        """Write it; say what the format cannot hold."""
        lost = export(load(self.dictionary), self.to, self.out)
        console.print(f"written: {self.out}", markup=False)
        for what in lost:
            console.print(f"not in it: {what}", markup=False)
