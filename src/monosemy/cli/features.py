"""See what a dictionary's features fire on: a table of the most telling, or one in full."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.cli.console import console, open_dictionary, open_text
from monosemy.coders import Dictionary
from monosemy.interpret import Features, choose_features, collect_features
from monosemy.report.terminal import feature_panel, feature_table


@dataclass(frozen=True)
class Command:
    """Options of `monosemy features`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run or a dictionary."""
    feature: Annotated[tyro.conf.Positional[int | None], tyro.conf.arg(metavar="ID")] = None
    """Number of a feature; without, the twenty most telling are listed."""
    data: str | None = None
    """Look at this text instead; its held-out part is used. Always looks anew."""
    column: str | None = None
    """Column that holds the text."""
    tokens: int = 100_000
    """Held-out tokens to look at."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print one feature or the table."""
        if self.feature is not None:
            Dictionary.from_pretrained(self.run_folder).check_feature(self.feature)
        features = self.features()
        if self.feature is not None:
            console.print(feature_panel(features[self.feature]))
            return
        console.print(feature_table([features[i] for i in choose_features(features)]))
        console.print(
            f"{len(features.live)} of {len(features)} features fired on {features.n_tokens:,} "
            f"held-out tokens; one in full: monosemy features {self.run_folder} ID",
            style="dim",
        )

    def features(self) -> Features:
        """Read what an earlier look left in the run, or look and leave it there."""
        saved = self.run_folder / "features"
        if self.data is None and saved.is_dir():
            return Features.load(saved)
        dictionary, lm = open_dictionary(self.run_folder, None, self.device)
        corpus = open_text(dictionary, self.data, self.column)
        stream = dictionary.provenance.stream(lm, corpus, "held_out")
        features = collect_features(dictionary, lm, stream, tokens=self.tokens)
        if self.data is None:
            features.save(saved)
        return features
