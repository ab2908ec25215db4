"""Run text through a model and its dictionary once, and keep what fires where.

Everything later is a look-up: features, search, labels, the app. Interrupted, it goes on where it
stopped. Several machines that share a disk each take a share with --shard I/N; --join then joins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from monosemy.cli.console import console, open_dictionary, open_text
from monosemy.corpus import LabelledCorpus, Part, open_labels
from monosemy.errors import UserError
from monosemy.index import TOKENS, Index, is_made, look
from monosemy.interpret import (
    Features,
    build_features,
    choose_features,
    describe,
    join_features,
    read_coverage,
    write_kinds,
    write_map,
    write_patterns,
)
from monosemy.report.terminal import concept_line


@dataclass(frozen=True)
class Command:
    """Options of `monosemy index`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run."""
    model: str | None = None
    """Another model than the one it was trained on."""
    data: str | None = None
    """Other text than the one it was trained on."""
    column: str | None = None
    """Column that holds the text."""
    part: Part = "held_out"
    """Of the text: `held_out`, which training never saw, `train` or `all`."""
    tokens: int = TOKENS
    """Tokens to look at."""
    labels: str | None = None
    """Labelled text to look at instead: its labels name features. A .jsonl, .csv, .parquet, a
    folder of them, a Hugging Face data set. Default: the syntax of Python source."""
    label: str | None = None
    """Column of `--labels` that holds the label."""
    map: bool = False
    """Also draw a map of all features, and cluster them and the text."""
    patterns: int = 20
    """Of so many of the most telling features, find the patterns of tokens they fire on (N2G)."""
    shard: str | None = None
    """Only this share of the documents, such as `2/4`; join when all are done."""
    join: bool = False
    """Only join the shards that are done."""
    anew: bool = False
    """Make it again although it is there, since the text has changed."""
    verify: bool = False
    """Only hold the index on disk against its checksums."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Make it, find out what can be found out by looking up, and say what it holds."""
        if self.verify:
            index = Index.open(self.run_folder)
            index.verify()
            console.print(f"{index}\nevery file is as it was written")
            return
        dictionary, lm = open_dictionary(self.run_folder, self.model, self.device)
        folder, labels = self.run_folder / "index", self._labels()
        found: dict[str, float] | None = None
        if self.join:
            features = join_features(dictionary, lm, folder)
        else:
            text = labels or open_text(dictionary, self.data, self.column)
            if self.shard is not None:
                part, tokens, shard = self.part, self.tokens, _shard(self.shard)
                look(dictionary, lm, text, folder, part=part, tokens=tokens, shard=shard)
                console.print(f"shard {self.shard} is done; when all are: --join")
                return
            asked: dict[str, Any] = {"part": self.part, "tokens": self.tokens}
            if not self.anew and is_made(dictionary, text, folder, **asked):
                console.print("the index is there; --anew makes it again", style="dim")
                features = Features(Index.open(folder))
                found = read_coverage(features.index) if labels is None else None
            else:
                features = build_features(dictionary, lm, text, folder, **asked)
        if found is None:
            named = describe(features.index, lm, dictionary, labels)
            found = named.coverage if named else None
        if self.map:
            write_map(features.index)
            write_kinds(features.index)
        if self.patterns and lm.is_causal:
            write_patterns(features.index, lm, dictionary, choose_features(features, self.patterns))
        self._say(features, found)

    def _labels(self) -> LabelledCorpus | None:
        if self.labels is None:
            return None
        if self.data is not None:
            raise UserError("both --data and --labels", "the labelled text is what is looked at")
        return open_labels(self.labels, column=self.column, label=self.label)

    def _say(self, features: Features, found: dict[str, float] | None) -> None:
        folder = self.run_folder / "index"
        size = sum(path.stat().st_size for path in folder.iterdir())
        console.print(f"{features.index}\n{folder}, {size / 1e6:,.0f} MB")
        if found is not None:
            console.print(concept_line(found))
        console.print(
            f"look with: monosemy features {self.run_folder}, monosemy search {self.run_folder} "
            f"WORDS, monosemy app {self.run_folder}",
            style="dim",
        )


def _shard(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit()):
        raise UserError(f"`{text}` is no shard", "such as --shard 2/4")
    return int(number), int(of)
