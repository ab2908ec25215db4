"""List where a model's activations can be read and edited, with widths and aliases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.table import Table

from monosemy.cli.console import console
from monosemy.lm import LM, empty_model


@dataclass(frozen=True)
class Command:
    """Options of `monosemy hookpoints`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """`builtin:stdlib`, a folder, or a Hugging Face id."""
    all: bool = False
    """List every module whose output is [batch, time, width] too."""

    def run(self) -> None:
        """Print the table."""
        lm = LM(self.model) if self.all else LM(empty_model(self.model))
        table = Table(box=None, header_style="bold")
        table.add_column("hook point")
        table.add_column("width", justify="right")
        table.add_column("also known as", style="dim", overflow="fold")
        for point in lm.hookpoints(all=self.all):
            table.add_row(point.name, str(point.width), "  ".join(point.aliases))
        console.print(table)
