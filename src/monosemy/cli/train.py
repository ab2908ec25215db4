"""Train a dictionary on a model's activations, into a new run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.cli.console import console
from monosemy.corpus import open_corpus
from monosemy.device import describe
from monosemy.lm import LM
from monosemy.training import TrainConfig, train


@dataclass(frozen=True)
class Command:
    """Options of `monosemy train`."""

    model: str = "builtin:stdlib"
    """`builtin:stdlib`, a folder, or a Hugging Face id."""
    data: str = "builtin:stdlib"
    """`builtin:stdlib`, a file or folder of .txt .md .py .jsonl .parquet .csv, or a data set."""
    column: str | None = None
    """Column that holds the text; found if not named."""
    config: str | None = None
    """Configuration of a Hugging Face data set."""
    split: str = "train"
    """Split of a Hugging Face data set."""
    held_out: float = 0.1
    """Share of documents kept away from training."""
    hookpoint: str | None = None
    """Where activations are taken; default the middle of the residual stream."""
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    out: Path | None = None
    """Folder of the run; default the next free one of runs/1, runs/2, ..."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Train and say how to go on."""
        lm = LM(self.model, device=self.device)
        corpus = open_corpus(
            self.data,
            column=self.column,
            config=self.config,
            split=self.split,
            held_out=self.held_out,
        )
        console.print(f"{lm} on {describe(lm.device)}", style="dim")
        run = train(lm, corpus, self.hookpoint, config=self.settings, out=self.out or _next_free())
        final = run.history[-1]
        console.print(
            f"{run.dictionary}\n"
            f"FVU {final['fvu']:.3f}, dead {final['dead_share']:.1%} on the last training batch; "
            f"L0 {run.dictionary.l0:.1f} on held-out text\n"
            f"saved in {run.folder}; next: monosemy evaluate {run.folder}"
        )


def _next_free() -> Path:
    number = 1
    while Path("runs", str(number)).exists():
        number += 1
    return Path("runs", str(number))
