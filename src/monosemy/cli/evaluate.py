"""Measure a dictionary on held-out text, beside baselines at equal L0, with a verdict."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.artefact import write_text
from monosemy.cli.console import console, open_dictionary, open_text
from monosemy.evaluation import evaluate
from monosemy.report.terminal import metrics_table


@dataclass(frozen=True)
class Command:
    """Options of `monosemy evaluate`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run or a dictionary."""
    model: str | None = None
    """Another model than the one it was trained on."""
    data: str | None = None
    """Other text than the one it was trained on; its held-out part is used."""
    column: str | None = None
    """Column that holds the text."""
    tokens: int = 65_536
    """Held-out tokens for reconstruction."""
    loss_tokens: int = 16_384
    """Held-out tokens for the effect on the model's loss."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the table and the verdict; write `metrics.json` beside the dictionary."""
        dictionary, lm = open_dictionary(self.run_folder, self.model, self.device)
        corpus = open_text(dictionary, self.data, self.column)
        result = evaluate(dictionary, lm, corpus, tokens=self.tokens, loss_tokens=self.loss_tokens)
        console.print(metrics_table(result))
        if ce := result.context["ce"]:
            console.print(
                f"CE of the model by itself {ce['original']:.3f}, mean-ablated {ce['mean']:.3f}, "
                f"zero-ablated {ce['zero']:.3f} nats",
                style="dim",
            )
        path = self.run_folder / "metrics.json"
        write_text(path, json.dumps(result.to_dict(), indent=2) + "\n")
        console.print(f"written to {path}", style="dim")
