"""Continue a prompt with features turned up or down, beside the model by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from monosemy.cli.console import console, open_dictionary
from monosemy.coders import Clamp
from monosemy.errors import UserError
from monosemy.intervene import FeatureEdit, parse_change, parse_positions, split_edits, steer
from monosemy.report.terminal import steered_table


@dataclass(frozen=True)
class Command:
    """Options of `monosemy steer`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run or a dictionary."""
    prompt: str
    """Text to continue."""
    feature: int | None = None
    """Number of a feature to clamp."""
    scale: tuple[float, ...] = (0.7,)
    """Clamp the feature to so many times its largest activation, one after another; 0 ablates."""
    edits: tuple[str, ...] = ()
    """Instead of a feature, edits that follow each other: "clamp 28=0.8,30=-0.5", "add 28=1",
    "scale 28=2", "ablate 28,30", "suppress 0.5", "swap 28,30", "project-out 28"."""
    positions: str = "all"
    """Where: `all`, `prompt`, `generated`, `3:10`, or "fires 28"."""
    error: Literal["keep", "drop"] = "keep"
    """What the dictionary does not explain stays, or is left out."""
    tokens: int = 60
    """Tokens to write."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    seed: int = 0
    """Of the sampling."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the continuations side by side, and on which tokens each edit acted."""
        if (self.feature is None) == (not self.edits):
            raise UserError("say what to change", "give --feature NUMBER or --edits, one of them")
        positions = parse_positions(self.positions)
        dictionary, lm = open_dictionary(self.run_folder, None, self.device)
        if self.feature is None:
            titles = ["; ".join(self.edits)]
            changes = [[parse_change(text) for text in split_edits(titles[0])]]
        else:
            titles = [f"feature {self.feature} at {scale:g}" for scale in self.scale]
            changes = [[Clamp({self.feature: scale})] for scale in self.scale]
        found = steer(
            lm,
            [FeatureEdit(dictionary, some, positions, self.error) for some in changes],
            self.prompt,
            max_new_tokens=self.tokens,
            temperature=self.temperature,
            seed=self.seed,
        )
        names = ["as it is", "through the dictionary", *titles]
        console.print(steered_table(dict(zip(names, found, strict=True))))
