"""Which features another seed finds again: dictionaries compared, matched one to one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.artefact import write_text
from monosemy.coders import Dictionary
from monosemy.evaluation.result import (
    Plot,
    SuiteResult,
    Table,
    joined,
    judge,
    quantiles,
    told,
)
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.metrics import bootstrap_weights, interval
from monosemy.metrics.recovery import max_cosines
from monosemy.metrics.stability import CANDIDATES, EXACT, match, partner_cosines, rotation
from monosemy.metrics.table import Better, MetricRow, MetricValue
from monosemy.progress import Task

SHARED = 0.7
"""Cosine above which two features are the same (Paulo & Belrose 2025, arXiv 2501.16615)."""
ROTATIONS = 5
"""Random rotations of the other dictionary: what matching finds where nothing is shared."""
FILE = "stability.json"

_ROWS: list[tuple[str, str, Better, str]] = [
    (
        "mean max cosine",
        "",
        "higher",
        "of each feature with the nearest of the other dictionary; several may have the same",
    ),
    ("PW-MCC", "", "higher", "mean cosine with the partner, matched one to one; 1 = all the same"),
    (
        f"shared above {SHARED}",
        "share",
        "higher",
        "features whose directions, and encoders, are so near their partners'",
    ),
]


@dataclass(frozen=True, slots=True)
class SeedComparison:
    """A dictionary's live features beside another's: numbers for each of them."""

    features: Int[Tensor, " live"]
    nearest: Float[Tensor, " live"]
    """Largest cosine of its direction with any of the other's."""
    matched: Float[Tensor, " live"]
    """Cosine with its partner in the one-to-one matching; 0 without one."""
    shared: Bool[Tensor, " live"]
    """Whether directions and encoders of the two are nearer than 0.7."""
    pairs: int
    """Features that can have a partner: those of the dictionary with fewer."""

    def columns(self) -> Float[Tensor, "live 3"]:
        """Return what the figures of the table are the means of."""
        scale = len(self.features) / self.pairs
        return torch.stack([self.nearest, self.matched * scale, self.shared.float()], 1)


def compare_seeds(
    dictionary: Dictionary, other: Dictionary, rotated: int | None = None
) -> SeedComparison:
    """Compare the live features of two dictionaries of the same activations.

    Partners are those whose directions are nearest, all in all (`metrics.stability.match`).

    Args:
        dictionary: whose features are asked about.
        other: where they are looked for.
        rotated: turn the other dictionary by the random rotation of this seed first.
    """
    features, theirs = _live(dictionary), _live(other)
    a, b = _directions(dictionary, features), _directions(other, theirs, rotated)
    partners = match(a, b)
    matched = partner_cosines(a, b, partners)
    shared = matched > SHARED
    # A foreign dictionary is an `encode` and a `decode`: it has no encoder's rows.
    if dictionary.coder.W_enc is not None and other.coder.W_enc is not None:
        mine, other_rows = _encoders(dictionary, features), _encoders(other, theirs, rotated)
        shared &= partner_cosines(mine, other_rows, partners) > SHARED
    return SeedComparison(features, max_cosines(b, a), matched, shared, min(len(a), len(b)))


def run(subject: Subject) -> SuiteResult:
    """Compare the dictionary's features with those of `subject.others`.

    Features that fired on held-out text after training are compared. Figures are means over the
    others; a feature's stability, in `series`, is its cosine with its partner, likewise. The
    control is the same on another dictionary rotated at random. Intervals are 95%, from bootstrap
    draws of features: seeds are few, and shown apart where there are several.

    Raises:
        NotMeaningful: there is no other dictionary, or too few features live.
    """
    dictionary, others = subject.dictionary, subject.others
    if not others:
        raise NotMeaningful(
            "there is no dictionary that differs in the seed alone: train some by `monosemy sweep "
            "--seed 0 1`, or name them with --seeds (`others` in Python)"
        )
    if min(len(_live(d)) for d in (dictionary, *others)) < 2:
        raise NotMeaningful("fewer than 2 features fire on held-out text: nothing is to match")
    with Task("stability", len(others) + ROTATIONS, "comparisons") as task:
        found, null = [], []
        for other in others:
            found.append(compare_seeds(dictionary, other))
            task.advance(1)
        for draw in range(ROTATIONS):
            other = others[draw % len(others)]
            null.append(compare_seeds(dictionary, other, rotated=subject.seed + draw))
            task.advance(1)
    return _result(subject, found, null)


def _cost(subject: Subject) -> int:
    return 0


def save(result: SuiteResult, folder: Path) -> None:
    """Write each feature's stability to `stability.json` in a run's folder, if it was measured."""
    if result.series:
        values = {"others": result.context["others"], **result.series}
        write_text(folder / FILE, json.dumps(values) + "\n")


def _live(dictionary: Dictionary) -> Int[Tensor, " live"]:
    """Return the features that fired on held-out text; all, where nobody has looked."""
    fired = dictionary.strength.cpu() > 0
    return (fired if bool(fired.any()) else ~fired).nonzero()[:, 0]


def _directions(
    dictionary: Dictionary, features: Tensor, rotated: int | None = None
) -> Float[Tensor, "live d_out"]:
    return _rotated(dictionary.coder.W_dec.detach().cpu()[features], rotated)


def _encoders(
    dictionary: Dictionary, features: Tensor, rotated: int | None = None
) -> Float[Tensor, "live d_in"]:
    return _rotated(dictionary.coder.W_enc.detach().cpu()[features], rotated)


def _rotated(rows: Tensor, seed: int | None) -> Tensor:
    return rows if seed is None else rows @ rotation(rows.shape[1], seed)


def _result(
    subject: Subject, found: Sequence[SeedComparison], null: Sequence[SeedComparison]
) -> SuiteResult:
    names = _names(subject.others)
    each = {name: one.columns().double().numpy() for name, one in zip(names, found, strict=True)}
    mine = np.mean(list(each.values()), axis=0)
    rotations = [one.columns().double().numpy() for one in null]
    n = len(mine)
    # One draw at a time: of a wide dictionary all weights together would fill the memory.
    weights = (bootstrap_weights(n, 1, subject.seed + i)[0] / n for i in range(subject.draws))
    draws = [
        np.stack([w @ m for m in (mine, rotations[i % len(rotations)], *each.values())])
        for i, w in enumerate(weights)
    ]
    samples = dict(zip(("dictionary", "random rotation", *names), np.stack(draws, 1), strict=True))
    points = {"dictionary": mine, "random rotation": np.concatenate(rotations), **each}

    def table(columns: list[str], title: str) -> Table:
        rows = []
        for i, (name, unit, better, said) in enumerate(_ROWS):
            ends = interval({c: samples[c][:, i] for c in columns})
            values = [MetricValue(float(points[c][:, i].mean()), *ends[c]) for c in columns]
            rows.append(MetricRow(name, unit, better, said, [*values]))
        return Table(columns, rows, title)

    tables = [table(["dictionary", "random rotation"], "mean over seeds")]
    if len(names) > 1:
        tables.append(table(names, "each by itself"))
    judgements = judge(
        "PW-MCC", {c: samples[c][:, 1] for c in ("dictionary", "random rotation")}, better="higher"
    )
    stability = [None] * subject.dictionary.width
    scores = torch.stack([one.matched for one in found]).mean(0)
    chance = torch.cat([one.matched for one in null])
    for feature, score in zip(found[0].features.tolist(), scores.tolist(), strict=True):
        stability[feature] = round(score, 4)
    exact = max(len(_live(d)) for d in (subject.dictionary, *subject.others)) <= EXACT
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        tables,
        verdict=f"{n:,} live features beside those of {joined(names)}: {told(judgements)}.",
        judgements=judgements,
        context={
            "others": names,
            "live": [n, *(len(_live(other)) for other in subject.others)],
            "rotations": len(rotations),
            "matching": "one to one, "
            + ("all pairs" if exact else f"the {CANDIDATES} nearest of each"),
            "interval": "95%, bootstrap over features",
        },
        plots=[
            Plot(
                "How near features are to their partners",
                "share of features",
                "cosine",
                {
                    "dictionary": quantiles(scores.numpy()),
                    "random rotation": quantiles(chance.numpy()),
                },
            )
        ],
        series={"stability": stability},
    )


def _names(others: Sequence[Dictionary]) -> list[str]:
    """Return what to call them: by their seeds, where these tell them apart."""
    seeds = [other.provenance.training.get("seed") for other in others]
    if None in seeds or len(set(seeds)) < len(seeds):
        return [f"other {i + 1}" for i in range(len(others))]
    return [f"seed {seed}" for seed in seeds]


SUITE = Suite("stability", "Stability across seeds", "standard", run, _cost)
