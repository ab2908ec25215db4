"""Search for the text that excites a feature most, beside its best exemplar in the corpus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table
from rich.text import Text

from monosemy.cli.console import console, open_dictionary
from monosemy.cli.features import Command as Look
from monosemy.coders import Dictionary
from monosemy.interpret.maximise import Input, Maximised, maximise


@dataclass(frozen=True)
class Command:
    """Options of `monosemy maximise`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run or a dictionary."""
    feature: Annotated[tyro.conf.Positional[int], tyro.conf.arg(metavar="FEATURE")]
    """Number of the feature."""
    steps: int = 60
    """Steps of the search; each tries some hundred texts."""
    length: int = 12
    """Tokens in a text."""
    seed: int = 0
    """Of the search."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the frontier of activation against likelihood, and the best exemplar."""
        Dictionary.from_pretrained(self.run_folder).check_feature(self.feature)
        index = Look(self.run_folder, device=self.device).look().index
        dictionary, lm = open_dictionary(self.run_folder, None, self.device)
        best, exemplar = int(index.peaks[self.feature][0]), None
        if best >= 0:
            around = index.text.window(best, index.text.context)
            exemplar = index.text.ids[around[around <= best]].tolist()
        found = maximise(
            dictionary,
            lm,
            self.feature,
            exemplar=exemplar,
            length=self.length,
            steps=self.steps,
            seed=self.seed,
        )
        console.print(_table(found))


def _table(found: Maximised) -> Table:
    table = Table(
        title=f"feature {found.feature}: what excites it most, at each likelihood",
        caption="activation over the best exemplar's; nats a token, less is likelier text",
        box=None,
    )
    for name in ("activation", "ratio", "nats"):
        table.add_column(name, justify="right")
    table.add_column("text", overflow="fold")
    for row in found.frontier:
        table.add_row(*_cells(found, row))
    if found.exemplar is not None:
        table.add_section()
        table.add_row(*_cells(found, found.exemplar), style="dim")
    return table


def _cells(found: Maximised, row: Input) -> list[Text]:
    text = repr(row.text)[1:-1]
    shown = text if row is not found.exemplar else f"best exemplar: …{text[-60:]}"
    figures = (f"{row.activation:.2f}", f"{found.ratio(row):.2f}", f"{row.cross_entropy:.2f}")
    return [Text(cell) for cell in (*figures, shown)]
