"""Read a dictionary of another tool, and keep it as one of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.artefact import new_run_folder
from monosemy.cli.console import console
from monosemy.formats import Given, load


@dataclass(frozen=True)
class Command:
    """Options of `monosemy import`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A file or folder, a Hub id (`owner/name`, `owner/name/folder`), or a release that
    `monosemy releases` lists."""
    out: Path | None = None
    """The run's folder, new; default runs/NAME, by the last part of SOURCE."""
    format: str | None = None
    """Where files fit several formats: which."""
    given: Annotated[Given, tyro.conf.arg(name="")] = field(default_factory=Given)

    def run(self) -> None:
        """Print what it is and what had to be assumed; write it."""
        dictionary = load(self.source, format=self.format, given=self.given)
        out = self.out or Path("runs") / _name(self.source)
        new_run_folder(out)
        dictionary.save_pretrained(out / "dictionary")
        console.print(str(dictionary), markup=False)
        for note in dictionary.provenance.training.get("imported", {}).get("notes", []):
            console.print(f"note: {note}", markup=False)
        console.print(f"written: {out}", style="dim", markup=False)
        console.print(f"next: monosemy doctor {out}", style="dim", markup=False)


def _name(source: str) -> str:
    """Return the last part of where a dictionary comes from, without a revision."""
    if Path(source).exists():
        return Path(source).resolve().name
    return source.partition("@")[0].rstrip("/").rpartition("/")[2]
