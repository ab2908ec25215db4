"""One feature in full: what is known of it, gathered for its page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monosemy.app.columns import labels
from monosemy.app.pages import Served
from monosemy.app.runs import OpenRun
from monosemy.errors import UserError
from monosemy.evaluation.effect_rows import EFFECTS
from monosemy.index import Exemplar, Index, read_names
from monosemy.interpret import LENS, Features, FeatureView
from monosemy.interpret.graph import START, WILDCARD
from monosemy.report.numbers import figure
from monosemy.report.tokens import visible

EXEMPLARS = 12
"""Strongest contexts shown."""
NEAREST = 8
"""Features shown of each kind of neighbours."""

_NEIGHBOURS = (
    ("Alike in direction", "cosine of the directions they write", "decoder"),
    ("Fire together", "share of the tokens on which either fires that both do", "coactive"),
)
_LENSES = (
    ("logits", "Logit lens", ("Promotes", "Suppresses")),
    ("logits_without_norm", "Logit lens without the final norm", ("Promotes", "Suppresses")),
    ("reads", "Token embeddings it reads", ("Most", "Least")),
    ("writes", "Token embeddings it writes", ("Most", "Least")),
)
"""Tables of `vocabulary_lens`, their headings, and those of their two ends."""
_FIFTHS = ("strongest fifth", "second fifth", "middle fifth", "fourth fifth", "weakest fifth")
_FIGURES = {
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "auroc": "AUROC",
    "mutual_information": "mutual information",
    "lift": "lift",
    "threshold": "threshold",
    "q": "false discovery rate",
    "score": "score",
}
"""Columns of tables that are shown, and what they are called."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """Contexts chosen in one way: a tab of the page."""

    id: str
    title: str
    note: str
    parts: Sequence[tuple[str, Sequence[tuple[str, Exemplar]]]]
    """Heading, and the contexts under it, each with the figure it was chosen by."""


@dataclass(frozen=True, slots=True)
class Lens:
    """What a feature is to the vocabulary, in one way."""

    title: str
    ends: Sequence[tuple[str, Sequence[tuple[str, float]]]]
    """Heading, and tokens with their weights, of the highest and of the lowest."""
    moments: dict[str, float]
    """Skewness and kurtosis of its weights over all tokens."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Features near to one in some way."""

    title: str
    note: str
    features: Sequence[tuple[int, str, float]]
    """Number, label and how near, nearest first."""


@dataclass(frozen=True, slots=True)
class LaterFeatures:
    """Features of another run, further on in the model, that ablation of one changes."""

    run: str
    """Its name."""
    hookpoint: str
    features: Sequence[tuple[int, str, float, str | None]]
    """Number, label, change of the activation, and link where the run is open; most changed
    first."""


@dataclass(frozen=True, slots=True)
class Effects:
    """What a feature causes where it fires."""

    row: dict[str, Any]
    """Figures, as `effect_rows` gives them."""
    changes: Sequence[tuple[str, float, Sequence[tuple[str, Sequence[tuple[str, float]]]]]]
    """What is done to it, KL in nats, and the two ends: heading, tokens with changes of logits."""
    alike: Sequence[tuple[int, str, float, float]]
    """Features of like effects: number, label, cosine of effects, cosine of directions."""
    later: LaterFeatures | None


def feature_values(
    run: OpenRun,
    feature: int,
    among: Sequence[int] | None = None,
    beside: Iterable[OpenRun] = (),
) -> dict[str, Any]:
    """Return what the page of a feature shows.

    Args:
        run: whose feature.
        feature: its number.
        among: the features that have a page, ascending; None: all.
        beside: runs that are open too, which it may link to.

    Raises:
        UserError: there is no feature of that number, or no index.
    """
    features = run.features
    index = features.index
    view = features.view(feature, exemplars=EXEMPLARS)
    before, after = _beside(index, feature, among)
    stability = (run.json("stability.json") or {}).get("stability")
    paged = set(among or ())
    return {
        "view": view,
        "given": read_names(index.folder).get(feature, []) if feature in index.names else [],
        "contexts": _contexts(view),
        "lenses": _lenses(features, feature),
        "neighbours": _neighbours(index, feature),
        "concept": index.table("concepts").get(feature),
        "explanation": index.table("explanations").get(feature),
        "patterns": _patterns(index, feature),
        "effects": _effects(index, feature, beside),
        "stability": stability[feature] if stability else None,
        "figures": _figures,
        "before": before,
        "after": after,
        "n_texts": len(index.text.names),
        "has_page": lambda other: among is None or other in paged,
    }


def _contexts(view: FeatureView) -> list[Contexts]:
    fifths = zip(_FIFTHS, map(_by_activation, view.groups), strict=False)
    misses = [(figure(score), exemplar) for exemplar, score in view.near_misses]
    found = [
        Contexts(
            "strongest",
            "Strongest",
            "Of different documents as far as there are, never the same text twice.",
            [("", _by_activation(view.exemplars))],
        ),
        Contexts(
            "fifths",
            "By strength",
            "Drawn from each fifth of the windows in which it fires, by strongest activation.",
            [(title, part) for title, part in fifths if part],
        ),
        Contexts(
            "random",
            "Random",
            "Drawn evenly from all windows in which it fires.",
            [("", _by_activation(view.random))],
        ),
        Contexts(
            "misses",
            "Near misses",
            "Where it came nearest to firing without doing so, and its pre-activation there.",
            [("", misses)],
        ),
    ]
    return [contexts for contexts in found if any(part for _, part in contexts.parts)]


def _by_activation(exemplars: Sequence[Exemplar]) -> list[tuple[str, Exemplar]]:
    return [(figure(exemplar.activations[exemplar.peak]), exemplar) for exemplar in exemplars]


def _beside(
    index: Index, feature: int, among: Sequence[int] | None
) -> tuple[int | None, int | None]:
    """Return the features with pages before and after one, by number: live ones."""
    paged = np.flatnonzero(index.counts) if among is None else np.asarray(among)
    before, after = paged[paged < feature], paged[paged > feature]
    return (int(before[-1]) if len(before) else None, int(after[0]) if len(after) else None)


def _lenses(features: Features, feature: int) -> list[Lens]:
    arrays, found = features.index.arrays(LENS), []
    for table, title, (up, down) in _LENSES:
        weights = features.lens(feature, table)
        half = len(weights) // 2
        ends = [(up, weights[:half]), (down, weights[half:])]
        moments = {
            name: float(arrays[f"{table}.{name}"][feature])
            for name in ("skewness", "kurtosis")
            if f"{table}.{name}" in arrays
        }
        if weights:
            found.append(Lens(title, ends, moments))
    return found


def _neighbours(index: Index, feature: int) -> list[Neighbours]:
    arrays = index.arrays("similar")
    found = []
    for title, note, name in _NEIGHBOURS:
        if f"{name}_ids" in arrays:
            ids = [f for f in arrays[f"{name}_ids"][feature].tolist() if f >= 0][:NEAREST]
            scores = arrays[f"{name}_scores"][feature].tolist()
            near = list(zip(ids, labels(index, ids), scores, strict=False))
            found.append(Neighbours(title, note, near))
    return [neighbours for neighbours in found if neighbours.features]


def _effects(index: Index, feature: int, beside: Iterable[OpenRun]) -> Effects | None:
    row = index.table(EFFECTS).get(feature)
    if row is None:
        return None
    changes = [
        (
            what,
            float(row[f"kl_{what}"]),
            [
                (title, [(index.text.token(t), change) for t, change in row[what][end]])
                for title, end in (("Raises", "raised"), ("Lowers", "lowered"))
            ],
        )
        for what in ("ablated", "doubled")
    ]
    others = [other for other, *_ in row["alike"]]
    alike = [
        (other, label, *cosines)
        for (other, *cosines), label in zip(row["alike"], labels(index, others), strict=True)
    ]
    return Effects(row, changes, alike, _later(row["later"], beside) if "later" in row else None)


def _later(told: dict[str, Any], beside: Iterable[OpenRun]) -> LaterFeatures:
    found = next((run for run in beside if _index_of(run) == told["dictionary"]), None)
    if found is None:
        bare = [(feature, "", change, None) for feature, change in told["features"]]
        return LaterFeatures(told["run"], told["hookpoint"], bare)
    called = labels(found.features.index, [feature for feature, _ in told["features"]])
    links = Served(found)
    features = [
        (feature, label, change, links.href(f"features/{feature}"))
        for (feature, change), label in zip(told["features"], called, strict=True)
    ]
    return LaterFeatures(found.name, told["hookpoint"], features)


def _index_of(run: OpenRun) -> str | None:
    """Return the dictionary that a run's index is of; None where it has no index."""
    try:
        return str(run.features.index.manifest["dictionary"])
    except UserError:
        return None


def _patterns(index: Index, feature: int) -> list[tuple[str, str]]:
    """Return a feature's N2G patterns as text, and what is known of each."""
    row = index.table("patterns").get(feature) or {}
    shown = []
    for pattern in row.get("patterns") or []:
        if isinstance(pattern, str):
            shown.append((visible(pattern), ""))
            continue
        text = "".join(_pattern_token(index, token) for token in pattern["tokens"])
        shown.append((text, f"{pattern['count']} contexts, {figure(pattern['activation'])}"))
    return shown


def _pattern_token(index: Index, token: int) -> str:
    if token == WILDCARD:
        return "[any]"
    if token == START:
        return "[start]"
    return visible(index.text.vocabulary[token])


def _figures(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures of a table's row, as they are called and shown."""
    return [
        (title, figure(float(row[name])))
        for name, title in _FIGURES.items()
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]
