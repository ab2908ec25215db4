"""Measure a run's dictionary, look at its features, steer, and write the report page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.cli.console import console, open_dictionary
from monosemy.report.build import report_run


@dataclass(frozen=True)
class Command:
    """Options of `monosemy report`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run."""
    prompt: str = "def read_file(path):"
    """Text to continue with and without features turned up."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Write it and say where it is."""
        _, lm = open_dictionary(self.run_folder, None, self.device)
        report = report_run(self.run_folder, lm, prompt=self.prompt)
        console.print(report.evaluation["reconstruction"].verdict)
        console.print(report.evaluation.verdict)
        console.print(f"written to {report.path}")
