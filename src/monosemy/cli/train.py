"""Train a dictionary on a model's activations, into a new run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.cli.console import console
from monosemy.cli.text import Text
from monosemy.device import describe
from monosemy.lm import LM, empty_model
from monosemy.report.sample import feature_sampler
from monosemy.training import Run, TrainConfig, check_trackers, make_plans, middle, train


@dataclass(frozen=True)
class Command:
    """Options of `monosemy train`."""

    model: str = "builtin:stdlib"
    """`builtin:stdlib`, a folder, or a Hugging Face id."""
    text: Annotated[Text, tyro.conf.arg(name="")] = field(default_factory=Text)
    hookpoint: str | None = None
    """Where activations are taken; default the middle of the residual stream."""
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    out: Path | None = None
    """Folder of the run; default the next free one of runs/1, runs/2, ..."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""
    track: tuple[str, ...] = ()
    """Where figures go beside the run's JSON lines: `tensorboard`, `wandb`, `trackio`."""
    samples: bool = False
    """Make pages of features four times on the way, into the run's samples/ and the trackers."""
    checkpoint_tokens: int | None = None
    """Tokens between checkpoints; default: five minutes."""
    profile: bool = False
    """Say in the end which share of the time text, model, disk and training took."""
    dry_run: bool = False
    """Say what would be done, every default resolved, and do nothing."""

    def run(self) -> None:
        """Train and say how to go on."""
        lm = LM(self.model, device=self.device, upto=self._upto())
        corpus = self.text.open()
        out = self.out or next_free()
        console.print(f"{lm} on {describe(lm.device)}", style="dim")
        if self.dry_run:
            check_trackers(self.track)
            (plan,) = make_plans(lm, corpus, [self.hookpoint], [self.settings], None, out)
            print_settings({"run folder": str(out), **plan.describe()})
            return
        run = train(
            lm,
            corpus,
            self.hookpoint,
            config=self.settings,
            out=out,
            track=self.track,
            checkpoint_tokens=self.checkpoint_tokens,
            sample=feature_sampler(lm, corpus) if self.samples else None,
            profile=self.profile,
        )
        print_trained(run)

    def _upto(self) -> list[str] | None:
        """Return the hook points that training reads; None where it asks the whole model."""
        if self.settings.objective != "mse" or self.samples:
            return None
        start = self.hookpoint or middle(LM(empty_model(self.model)))
        return [start, self.settings.target or start]


def print_settings(settings: dict[str, str]) -> None:
    """Print resolved settings, one a line."""
    length = max(len(name) for name in settings)
    for name, value in settings.items():
        console.print(f"{name:<{length}}  {value}", markup=False, highlight=False)


def print_trained(run: Run) -> None:
    """Print what a run gave and what to do next."""
    final = run.history[-1]
    console.print(
        f"{run.dictionary}\n"
        f"FVU {final['fvu']:.3f}, dead {final['dead_share']:.1%} on the last training batch; "
        f"L0 {run.dictionary.l0:.1f} on held-out text\n"
        f"saved in {run.folder}; next: monosemy evaluate {run.folder}"
    )


def next_free() -> Path:
    """Return the first of runs/1, runs/2, ... that is not there."""
    number = 1
    while Path("runs", str(number)).exists():
        number += 1
    return Path("runs", str(number))
