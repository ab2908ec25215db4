"""Find the features that differ between paired texts, such as flawed functions and their fixes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from monosemy.artefact import write_text
from monosemy.cli.console import console, open_dictionary
from monosemy.corpus import read_pairs
from monosemy.corpus.pairs import PREFIX, two_columns
from monosemy.evaluation import SuiteResult
from monosemy.evaluation.contrast import contrast
from monosemy.interpret import Exemplar
from monosemy.report.numbers import MISSING, percent
from monosemy.report.terminal import context_line, suite_tables

_FILE = "contrast.json"


@dataclass(frozen=True)
class Command:
    """Options of `monosemy contrast`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run or a dictionary."""
    pairs: str = "builtin:stdlib"
    """Paired texts: a table with `before` and `after`; PrimeVul, DiverseVul or CVEfixes as they
    are published; or `builtin:stdlib`, functions of Python's standard library given a flaw."""
    columns: str | None = None
    """Columns of the two texts, as BEFORE,AFTER; found if not named."""
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Column of the class, such as the CWE; `control` there stands for none. Found if not named."""
    group: str | None = None
    """Column of what pairs may share, such as the project; found if not named."""
    most: int = 40
    """Pairs of each class at most."""
    model: str | None = None
    """Another model than the one it was trained on."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the best feature of each class, baselines and the verdict; write them down."""
        columns = None if self.columns is None else two_columns(self.columns)
        source = self.pairs.removeprefix(PREFIX)
        pairs = list(read_pairs(source, columns, label=self.label, group=self.group))
        dictionary, lm = open_dictionary(self.run_folder, self.model, self.device)
        result = contrast(dictionary, lm, pairs, most=self.most)
        console.print(_features(result))
        console.print(suite_tables(result))
        path = self.run_folder / _FILE
        write_text(path, json.dumps({"pairs": source, **asdict(result)}, indent=2) + "\n")
        console.print(f"written: {path}", style="dim")


def _features(result: SuiteResult) -> Table:
    """One line a class: the feature that tells it best, and what that may come from."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("class", "feature", "more", "pooled"):
        table.add_column(name, no_wrap=True)
    for name in ("differ", "fires", "right", "by tokens", "controls"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("where it differs most")
    for f in result.series["best"]:
        exemplar = Exemplar(**f["exemplar"])
        table.add_row(
            f["label"] or "(none)",
            str(f["feature"]),
            "before" if f["before"] else "after",
            f"{f['region']} {f['pool']}",
            f"{result.context['differ'][f['label']]:,}",
            percent(f["active"]),
            f"{percent(f['accuracy'])}",
            percent(f["tokens_accuracy"]),
            MISSING if f["control_accuracy"] is None else percent(f["control_accuracy"]),
            context_line(exemplar, max(exemplar.activations)),
        )
    return table
