"""Train many dictionaries on one pass of the model, compare them, write a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from monosemy.cli.console import console
from monosemy.cli.text import Text
from monosemy.cli.train import next_free, print_settings
from monosemy.device import describe
from monosemy.lm import LM
from monosemy.report.sweep import seeds_table, sweep_report, sweep_table
from monosemy.training import TrainConfig, check_trackers, expand, make_plans, sweep


@dataclass(frozen=True)
class Grid:
    """Settings that vary: every combination is trained."""

    architecture: tuple[str, ...] = ()
    """Architectures."""
    k: tuple[int, ...] = ()
    """Features a token, for architectures where k decides."""
    target_l0: tuple[float, ...] = ()
    """Features a token, for architectures where a penalty decides."""
    width: tuple[int, ...] = ()
    """Numbers of features."""
    lr: tuple[float, ...] = ()
    """Peak learning rates."""
    tokens: tuple[int, ...] = ()
    """Tokens to train on."""
    seed: tuple[int, ...] = ()
    """Seeds of initial weights; the order of text is the first one's."""

    def lists(self) -> dict[str, list[Any]]:
        """Return the lists that were given."""
        return {name: list(values) for name, values in vars(self).items() if values}


@dataclass(frozen=True)
class Command:
    """Options of `monosemy sweep`."""

    grid: Annotated[Grid, tyro.conf.arg(name="")] = field(default_factory=Grid)
    hookpoint: tuple[str, ...] = ()
    """Where activations are taken; default the middle of the residual stream."""
    model: str = "builtin:stdlib"
    """`builtin:stdlib`, a folder, or a Hugging Face id."""
    text: Annotated[Text, tyro.conf.arg(name="")] = field(default_factory=Text)
    settings: TrainConfig = field(default_factory=TrainConfig)
    """What does not vary."""
    out: Path | None = None
    """Folder of the sweep; default the next free one of runs/1, runs/2, ..."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""
    track: tuple[str, ...] = ()
    """Where figures go beside each run's JSON lines: `tensorboard`, `wandb`, `trackio`."""
    checkpoint_tokens: int | None = None
    """Tokens between checkpoints; default: five minutes."""
    dry_run: bool = False
    """Say what would be done, every default resolved, and do nothing."""

    def run(self) -> None:
        """Train, compare and say where everything is."""
        lm = LM(self.model, device=self.device)
        corpus = self.text.open()
        out = self.out or next_free()
        points: list[str | None] = [*self.hookpoint] or [None]
        grid = self.grid.lists()
        console.print(f"{lm} on {describe(lm.device)}", style="dim")
        if self.dry_run:
            check_trackers(self.track)
            configs = expand(self.settings, grid)
            for plan in make_plans(lm, corpus, points, configs, None, out, many=True):
                console.rule(plan.name)
                print_settings(plan.describe())
            return
        runs = sweep(
            lm,
            corpus,
            points,
            grid=grid,
            config=self.settings,
            out=out,
            track=self.track,
            checkpoint_tokens=self.checkpoint_tokens,
        )
        report = sweep_report(out, runs, lm, corpus)
        console.print(sweep_table(report.rows))
        seeds = seeds_table(report.rows)
        if seeds is not None:
            console.print(seeds)
        for fit in report.scaling:
            console.print(fit.sentence())
        if report.refusal:
            console.print(report.refusal)
        console.print(f"{len(runs)} dictionaries, one folder each, in {out}; page: {report.path}")
