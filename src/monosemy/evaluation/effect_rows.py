"""Effects of features as rows of a table, kept with an index: what a page shows of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from monosemy.coders import Dictionary
from monosemy.evaluation.feature_effects import FeatureEffects
from monosemy.evaluation.likeness import LensAgreement, cosines
from monosemy.index import Index

EFFECTS = "effects"
"""Name of the table."""
TOKENS, LATER, ALIKE = 8, 8, 5
"""Tokens at either end, later features, and features of like effects that a row has."""
_FIGURES = ("kl_ablated", "kl_doubled", "steady")


def effect_rows(
    dictionary: Dictionary,
    effects: FeatureEffects,
    lens: LensAgreement | None = None,
    later: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return a row of JSON values for each feature.

    Args:
        dictionary: whose features.
        effects: theirs.
        lens: the logit lens beside them, see `lens_of`.
        later: what to say of the later dictionary, kept in every row.

    Returns:
        Rows with `feature`, `windows`, `kl_ablated`, `kl_doubled` (nats), `steady`; `lens`, the
        correlation, where there is one; `ablated` and `doubled`, each with the tokens `raised` and
        `lowered` most, [id, change of the logit]; `alike`, of the features measured together those
        of the most like effects, [feature, cosine of effects, cosine of directions]; and where
        there is a later dictionary, `later` with its `features` most changed by ablation,
        [feature, change of its activation].
    """
    directions = dictionary.coder.W_dec[effects.features.tolist()].cpu().numpy()
    alike, near = cosines(effects.ablated), cosines(directions)
    np.fill_diagonal(alike, -np.inf)
    rows = []
    for n, feature in enumerate(effects.features.tolist()):
        others = np.argsort(-alike[n], kind="stable")[: min(ALIKE, len(effects) - 1)]
        row: dict[str, Any] = {
            "feature": feature,
            "windows": int(effects.windows[n]),
            **{name: _short(getattr(effects, name)[n]) for name in _FIGURES},
            "ablated": _ends(effects.ablated[n], effects.tokens),
            "doubled": _ends(effects.doubled[n], effects.tokens),
            "alike": [
                [int(effects.features[m]), _short(alike[n, m]), _short(near[n, m])] for m in others
            ],
        }
        if lens is not None:
            row["lens"] = _short(lens.correlations[n])
        if effects.later is not None:
            row["later"] = {**(later or {}), "features": _most_changed(effects.later[n])}
        rows.append(row)
    return rows


def write_effects(index: Index, rows: Sequence[dict[str, Any]]) -> None:
    """Keep rows beside those known before, of other features.

    Raises:
        UserError: the disk refuses.
    """
    known = index.table(EFFECTS) | {row["feature"]: row for row in rows}
    index.write_table(EFFECTS, [known[feature] for feature in sorted(known)])


def _ends(
    change: Float[np.ndarray, " tokens"], ids: Int[np.ndarray, " tokens"]
) -> dict[str, list[list]]:
    order = np.argsort(-change, kind="stable")
    count = min(TOKENS, len(order) // 2)
    ends = {"raised": order[:count], "lowered": order[::-1][:count]}
    return {name: [[int(ids[t]), _short(change[t])] for t in end] for name, end in ends.items()}


def _most_changed(change: Float[np.ndarray, " width"]) -> list[list]:
    order = np.argsort(-np.abs(change), kind="stable")[:LATER]
    return [[int(f), _short(change[f])] for f in order if change[f] != 0]


def _short(value: float | np.floating) -> float:
    """Return a figure with four digits, which is all that is shown."""
    return float(f"{value:.4g}")
