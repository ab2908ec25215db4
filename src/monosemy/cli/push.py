"""Upload a dictionary to the Hugging Face hub, with a model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.cli.console import console
from monosemy.coders.card import read_evaluation
from monosemy.formats import load


@dataclass(frozen=True)
class Command:
    """Options of `monosemy push`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run's folder; its last evaluation goes into the card."""
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPO")]
    """`owner/name`; made where there is none."""
    private: bool = False
    """Make it a repository that only its owner sees."""
    out: Path | None = None
    """Upload nothing: write card and files to this folder, to look at."""

    def run(self) -> None:
        """Upload, or write what would be uploaded."""
        dictionary, evaluation = load(self.run_folder), read_evaluation(self.run_folder)
        if self.out is not None:
            folder = dictionary.save_for_hub(self.out, self.repo, evaluation=evaluation)
            console.print(f"written, not uploaded: {folder}", markup=False)
            return
        address = dictionary.push_to_hub(self.repo, private=self.private, evaluation=evaluation)
        console.print(f"uploaded: {address}", markup=False)
        console.print(f'load it with: monosemy.load("{self.repo}")', style="dim", markup=False)
        console.print("say in its card under which licence it may be used", style="dim")
