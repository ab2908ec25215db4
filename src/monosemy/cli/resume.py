"""Go on with an interrupted run or sweep, or train a finished one on more tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.cli.console import console
from monosemy.cli.train import print_trained
from monosemy.training import describe_extension, open_lm, resume


@dataclass(frozen=True)
class Command:
    """Options of `monosemy resume`."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the run or sweep."""
    extend: int | None = None
    """Train on this many tokens in all, more than before."""
    data: str | None = None
    """Text, if the one named in the folder is not to be had under that name."""
    disk_budget: str | None = None
    """As for `monosemy train`; may be another, or none."""
    track: tuple[str, ...] = ()
    """Where figures go beside the run's JSON lines: `tensorboard`, `wandb`, `trackio`."""
    checkpoint_tokens: int | None = None
    """Tokens between checkpoints; default: five minutes."""

    def run(self) -> None:
        """Go on and say what came of it."""
        if self.extend is not None:
            console.print(
                f"extending {self.folder}: {describe_extension(self.folder, self.extend)}"
            )
        runs = resume(
            self.folder,
            open_lm(self.folder),
            data=self.data,
            extend=self.extend,
            disk_budget=self.disk_budget,
            track=self.track,
            checkpoint_tokens=self.checkpoint_tokens,
        )
        for run in runs:
            print_trained(run)
