"""Measure what features cause: ablate and double each where it fires, and see what changes.

Then say whether like features have like effects. What is found is kept with the run's index, which
is made where there is none; `monosemy app` and `monosemy report` show it on features' pages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Int
from rich.table import Table
from rich.text import Text

from monosemy.artefact import write_text
from monosemy.cli.console import console, names_of, open_dictionary
from monosemy.cli.features import Command as Look
from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.evaluation.effect_rows import effect_rows, write_effects
from monosemy.evaluation.feature_effects import (
    CONTEXT,
    WINDOWS,
    FeatureEffects,
    draw_features,
    feature_effects,
)
from monosemy.evaluation.likeness import FEWEST, Likeness, lens_of, measure_likeness
from monosemy.index import Index
from monosemy.interpret import read_clusters
from monosemy.report.numbers import figure
from monosemy.report.tokens import visible

_SHOWN, _TOKENS, _LATER = 20, 3, 2
"""Features listed, and tokens and later features of each; one token less beside the latter."""


@dataclass(frozen=True)
class Command:
    """Options of `monosemy effects`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run."""
    features: tuple[int, ...] = ()
    """Numbers of features; default `--count` of them, from rare to frequent."""
    count: int = 200
    """Features to draw where none is named."""
    later: Path | None = None
    """Another run, at a hook point further on: which of its features change?"""
    windows: int = WINDOWS
    """Texts for each feature, at most."""
    context: int | None = None
    """Tokens in each, up to where the feature fires; default 32, or a row of the index if that is
    shorter."""
    json: Path | None = None
    """Write everything here."""
    seed: int = 0
    """Of the draws of features, of texts and of permutations."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the table, the correlations beside their nulls, and what they say."""
        named = Dictionary.from_pretrained(self.run_folder)
        for feature in self.features:
            named.check_feature(feature)
        later = _open_later(self.later, named)
        index = Look(self.run_folder, device=self.device).look().index
        dictionary, lm = open_dictionary(self.run_folder, None, self.device)
        context = self.context if self.context is not None else min(CONTEXT, index.text.context)
        asked = self.features or draw_features(index, self.count, seed=self.seed)
        effects = feature_effects(
            lm,
            dictionary,
            asked,
            index,
            later=later.to(lm.device) if later is not None else None,
            windows=self.windows,
            context=context,
            seed=self.seed,
        )
        lens = lens_of(lm, dictionary, effects, seed=self.seed)
        rows = effect_rows(dictionary, effects, lens, _told_of(self.later, later))
        self._list(index, rows)
        _say_measured(asked, effects, context)
        likeness = None
        if len(effects) >= FEWEST:
            clusters = _clusters(index, dictionary)
            likeness = measure_likeness(dictionary, effects, clusters, lens, seed=self.seed)
            _say_likeness(likeness)
        else:
            console.print(f"it takes {FEWEST} features to say whether like ones act alike")
        write_effects(index, rows)
        self._write(rows, likeness, context)

    def _list(self, index: Index, rows: Sequence[dict[str, Any]]) -> None:
        most = sorted(rows, key=lambda row: -row["kl_ablated"])
        shown = most if self.features else most[:_SHOWN]
        called = names_of(self.later) if self.later is not None else None
        console.print(_table(index, shown, called))
        if len(shown) < len(rows):
            console.print(
                f"the {len(shown)} of {len(rows)} features with the largest KL; all of them: "
                f"--json FILE, or monosemy app {self.run_folder}",
                style="dim",
            )

    def _write(
        self, rows: Sequence[dict[str, Any]], likeness: Likeness | None, context: int
    ) -> None:
        if self.json is None:
            return
        values = {
            "windows": self.windows,
            "context": context,
            "seed": self.seed,
            "likeness": likeness.to_dict() if likeness is not None else None,
            "features": rows,
        }
        write_text(self.json, json.dumps(values, indent=2) + "\n")
        console.print(f"written: {self.json}", style="dim")


def _open_later(folder: Path | None, dictionary: Dictionary) -> Dictionary | None:
    """Open the later dictionary.

    Raises:
        UserError: there is none, or it is of another model.
    """
    if folder is None:
        return None
    later = Dictionary.from_pretrained(folder)
    if later.provenance.model != dictionary.provenance.model:
        raise UserError(
            f"`{folder}` is of the model {later.provenance.model}, not of "
            f"{dictionary.provenance.model}",
            "give a run of the same model",
        )
    return later


def _told_of(folder: Path | None, later: Dictionary | None) -> dict[str, Any] | None:
    """Return what to keep of a later dictionary, by which the app finds its run."""
    if folder is None or later is None:
        return None
    return {
        "run": folder.resolve().name,
        "hookpoint": later.hookpoint,
        "dictionary": later.identity(),
    }


def _clusters(index: Index, dictionary: Dictionary) -> Int[np.ndarray, " width"] | None:
    try:
        return read_clusters(index, dictionary)
    except UserError as error:
        console.print(f"no clusters: {error}", style="dim")
        return None


def _say_measured(asked: Sequence[int], effects: FeatureEffects, context: int) -> None:
    low, median, high = np.quantile(effects.kl_ablated, (0.1, 0.5, 0.9)).tolist()
    console.print(
        f"{len(effects)} features on {int(effects.windows.sum()):,} texts of {context} "
        f"tokens; KL of ablation {figure(median)} nats, median "
        f"(tenths {figure(low)} and {figure(high)})"
    )
    console.print(
        "a feature's effect on half of its texts and on the other half: cosine "
        f"{np.median(effects.steady):.2f}, median"
    )
    missing = sorted(set(asked) - set(effects.features.tolist()))
    if missing:
        listed = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        console.print(f"left out, as they fire on fewer than two such texts: {listed}")


def _say_likeness(likeness: Likeness) -> None:
    console.print()
    for line in likeness.lines():
        console.print(line, soft_wrap=True)
    console.print(likeness.verdict, style="bold")


def _table(
    index: Index, rows: Sequence[dict[str, Any]], called: dict[int, list[str]] | None
) -> Table:
    """Two lines a feature: where it is ablated, and where it is doubled."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("feature", justify="right", no_wrap=True, style="bold")
    table.add_column("name", max_width=22)
    table.add_column("", no_wrap=True)
    table.add_column("KL, nats", justify="right", no_wrap=True)
    # Rich narrows only columns that may wrap; their cells are cut instead.
    for heading in ("raises", "lowers", *(("later features",) if called is not None else ())):
        table.add_column(heading)
    count = _TOKENS if called is None else _TOKENS - 1
    for row in rows:
        name = next(iter(index.names.get(row["feature"], [])), "")
        for what, first in (("ablated", (str(row["feature"]), name)), ("doubled", ("", ""))):
            ends = [_tokens(index, row[what][end][:count]) for end in ("raised", "lowered")]
            cells = [*first, what, figure(row[f"kl_{what}"], 2), *ends]
            if called is not None and what == "ablated":
                cells.append(_later_features(row["later"]["features"], called))
            table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells))
    return table


def _tokens(index: Index, changes: Sequence[list]) -> str:
    return "  ".join(f"{visible(index.text.token(t))} {change:+.2f}" for t, change in changes)


def _later_features(changes: Sequence[list], called: dict[int, list[str]]) -> str:
    told = [
        f"{feature} {change:+.2f} {next(iter(called.get(feature, [])), '')}".strip()
        for feature, change in changes[:_LATER]
    ]
    return ", ".join(told)
