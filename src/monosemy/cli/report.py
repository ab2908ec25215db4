"""Measure a run's dictionary, look at its features, steer, and write it all as pages.

`report.html` is one file; `site/` has the pages of `monosemy app` as files that open from disk.
"""

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
    features: int | None = None
    """Features that have a page in `site/`: the most telling, then the most frequent; default
    4,096."""
    site: Path | None = None
    """Folder of these pages; default `site` in the run."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Write it and say where it is."""
        _, lm = open_dictionary(self.run_folder, None, self.device)
        report = report_run(self.run_folder, lm, prompt=self.prompt)
        console.print(report.evaluation["reconstruction"].verdict)
        console.print(report.evaluation.verdict)
        console.print(f"written to {report.path}")
        self._write_site()

    def _write_site(self) -> None:
        try:
            from monosemy.app.site import MOST, write_site
        except ModuleNotFoundError as error:
            console.print(f"no pages of features: {error.name} is not installed", style="dim")
            return
        most = MOST if self.features is None else self.features
        site = write_site(self.run_folder, self.site, most=most)
        console.print(
            f"{site.path}: pages of {site.features:,} of {site.live:,} live features, "
            f"{site.size / 1e6:,.0f} MB"
        )
