"""Give features names, take in those of others, and write them out."""

from __future__ import annotations

import csv
import getpass
import io
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.artefact import write_text
from monosemy.cli.console import console
from monosemy.errors import UserError
from monosemy.index import Index, Name, add_name, merge_names, read_names


@dataclass(frozen=True)
class Command:
    """Options of `monosemy names`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run with an index."""
    feature: Annotated[tyro.conf.Positional[int | None], tyro.conf.arg(metavar="ID")] = None
    """Number of a feature to name."""
    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """What to call it; an empty name takes back the one before."""
    by: str | None = None
    """Who calls it so; default the user's name on this machine."""
    merge: Path | None = None
    """Take in another index's human.jsonl."""
    export: Path | None = None
    """Write all names as .csv."""

    def run(self) -> None:
        """Do it, then list what people call features."""
        index = Index.open(self.run_folder)
        if self.feature is not None:
            self._add(index)
        if self.merge is not None:
            new = merge_names(index.folder, self.merge, index.width)
            console.print(f"{new} new names from {self.merge}")
        names = [name for given in read_names(index.folder).values() for name in given]
        if self.export is not None:
            _export(names, self.export)
            console.print(f"{len(names)} names written to {self.export}")
            return
        for name in sorted(names, key=lambda n: (n.feature, n.at)):
            console.print(f"{name.feature:>7}  {name.name}  ({name.by})", markup=False)
        if not names:
            console.print(
                f"nobody has named a feature yet: monosemy names {self.run_folder} ID NAME"
            )

    def _add(self, index: Index) -> None:
        index.check_feature(int(self.feature or 0))
        if self.name is None:
            raise UserError(f"no name for feature {self.feature}", "monosemy names RUN ID NAME")
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        by = self.by or getpass.getuser()
        add_name(index.folder, Name(int(self.feature or 0), self.name, by, now))


def _export(names: list[Name], path: Path) -> None:
    if path.suffix != ".csv":
        raise UserError(f"cannot export to `{path}`", "allowed: a .csv file")
    text = io.StringIO()
    table = csv.DictWriter(text, ["feature", "name", "by", "at"])
    table.writeheader()
    table.writerows(asdict(name) for name in names)
    write_text(path, text.getvalue())
