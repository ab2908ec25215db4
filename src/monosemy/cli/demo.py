"""The main job on the embedded model: train, measure, look, steer, report. A few minutes."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.rule import Rule

from monosemy.cli.console import console
from monosemy.device import describe
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.report.build import report_run
from monosemy.report.terminal import (
    concept_line,
    feature_table,
    named_table,
    steering_panel,
    suite_tables,
)
from monosemy.training import TrainConfig, train

SETTINGS = TrainConfig(architecture="batch_topk", width=2048, k=32, tokens=1_500_000)


@dataclass(frozen=True)
class Command:
    """Options of `monosemy demo`."""

    out: Path = Path("runs/demo")
    """Folder of the run."""
    overwrite: bool = False
    """Replace the folder if an earlier demo left it."""
    seed: int = 0
    """The same seed gives the same dictionary."""
    tokens: int = SETTINGS.tokens
    """Tokens to train on."""

    def run(self) -> None:
        """Do it all and print what was learned."""
        began = time.monotonic()
        if (self.out / "config.json").is_file():
            if not self.overwrite:
                raise UserError(f"run folder `{self.out}` exists", "add --overwrite to replace it")
            shutil.rmtree(self.out)
        lm = LM("builtin:stdlib")
        console.print(
            f"[bold]monosemy demo[/bold]: {lm}, a model of Python's standard library\n"
            f"on {describe(lm.device)}"
        )
        console.print(Rule("1. train a dictionary on the middle of the residual stream"))
        settings = TrainConfig(**{**SETTINGS.to_dict(), "seed": self.seed, "tokens": self.tokens})
        trained = train(lm, "builtin:stdlib", config=settings, out=self.out)
        console.print(Rule("2. measure it on held-out files, look at its features, steer"))
        report = report_run(self.out, lm, facts={"machine": describe(lm.device)})
        for result in report.evaluation.suites:
            console.print(suite_tables(replace(result, tables=result.tables[:1])))
        console.print(feature_table([report.features[i] for i in report.chosen]))
        for pair in report.steering[:1]:
            console.print(steering_panel(pair))
        console.print(Rule("3. name them by what the parser knows of the text, held out"))
        if report.named is not None:
            console.print(named_table(report.features, report.named))
            console.print(concept_line(report.named.coverage))
        console.print(Rule("4. what is there now"))
        console.print(
            f"{trained.dictionary}\n"
            f"  {self.out}/dictionary    load it with monosemy.Dictionary.from_pretrained\n"
            f"  {self.out}/metrics.json  the table above\n"
            f"  {report.path}  open it in a browser\n"
            f"  {self.out}/index         which features fire where: all of it in a browser with\n"
            f"      monosemy app {self.out}\n"
            f"{time.monotonic() - began:.0f} s, peak memory {_peak_memory():.2f} GB"
        )


def _peak_memory() -> float:
    """Peak resident memory of this process, GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)
