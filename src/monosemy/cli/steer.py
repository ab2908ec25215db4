"""Continue a prompt with a feature turned up or down, beside the model by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.cli.console import console, open_dictionary
from monosemy.intervene import compare
from monosemy.report.terminal import steering_panel


@dataclass(frozen=True)
class Command:
    """Options of `monosemy steer`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run or a dictionary."""
    feature: int
    """Number of the feature."""
    prompt: str
    """Text to continue."""
    scale: float = 0.7
    """Clamp the feature to this many times its largest activation; 0 ablates it."""
    tokens: int = 60
    """Tokens to write."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    seed: int = 0
    """Of the sampling."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print both continuations."""
        dictionary, lm = open_dictionary(self.run_folder, None, self.device)
        pair = compare(
            lm,
            dictionary,
            feature=self.feature,
            scale=self.scale,
            prompt=self.prompt,
            max_new_tokens=self.tokens,
            temperature=self.temperature,
            seed=self.seed,
        )
        console.print(steering_panel(pair))
