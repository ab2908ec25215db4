"""What the list of features shows: a column for each figure, all features at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from monosemy.app.runs import OpenRun
from monosemy.index import Index, read_names
from monosemy.report.tokens import visible

PEAKS = 3
"""Tokens shown of each feature."""
KINDS = ("people", "explanation", "concept")
"""Where a name comes from, the best first."""
_ROWS = 4096


def features_js(run: OpenRun, paged: Sequence[int] | None = None) -> str:
    """Return a script that sets `FEATURES`: JSON that pages from disk can load too.

    Args:
        run: whose features.
        paged: those that have a page; None: all.

    `words` are all the tokens shown; `peaks` holds, for each feature, `PEAKS` numbers of them, -1
    where there are fewer. `names` has a feature, its name, and where that is from (`KINDS`).
    """
    index = run.features.index
    stability = (run.json("stability.json") or {}).get("stability")
    if paged is not None:
        return _script(index, stability, paged)
    stamp = id(index), id(index.names), id(stability)
    return run.kept("features.js", stamp, lambda: _script(index, stability, None))


def _script(
    index: Index, stability: Sequence[float | None] | None, paged: Sequence[int] | None
) -> str:
    ids = peak_tokens(index, np.arange(index.width))
    used, words = np.unique(ids, return_inverse=True)
    missing = int(len(used) > 0 and used[0] < 0)
    values: dict[str, Any] = {
        "n_tokens": index.n_tokens,
        "count": index.counts.tolist(),
        "max": _short(index.max),
        "mean": _short(index.mean),
        "words": [word(index, i) for i in used[missing:].tolist()],
        "peaks": (words.reshape(-1) - missing).tolist(),
        "names": [[feature, *named] for feature, named in sorted(named_by(index).items())],
    }
    if paged is not None and len(paged) < index.width:
        values["paged"] = list(paged)
    if stability:
        values["stability"] = list(stability)
    for name, table in (("concept", "concepts"), ("explanation", "explanations")):
        scores = {feature: score_of(row) for feature, row in index.table(table).items()}
        if any(score is not None for score in scores.values()):
            values[name] = [scores.get(feature) for feature in range(index.width)]
    return f"var FEATURES = {json.dumps(values, separators=(',', ':'))};\n"


def named_by(index: Index) -> dict[int, tuple[str, str]]:
    """Return each feature's first name, and where that is from."""
    people, explained = read_names(index.folder), index.table("explanations")
    kinds = {f: KINDS[0] if f in people else KINDS[1 if f in explained else 2] for f in index.names}
    return {feature: (names[0], kinds[feature]) for feature, names in index.names.items()}


def score_of(row: dict[str, Any]) -> float | None:
    """Return the figure by which what a row says is judged: `score`, else F1, else precision."""
    for name in ("score", "f1", "precision"):
        if isinstance(row.get(name), int | float):
            return round(float(row[name]), 4)
    for scorer in (row.get("scores") or {}).values():
        for figure in scorer.get("dictionary", {}).get("figures", {}).values():
            return round(float(figure["value"]), 4)
    return None


def labels(index: Index, features: Sequence[int]) -> list[str]:
    """Return each feature's first name, else the tokens on which it fires most."""
    names, ids = index.names, peak_tokens(index, np.array(features, np.int64)).tolist()
    return [
        names[feature][0]
        if feature in names
        else "  ".join(word(index, i) for i in tokens if i >= 0)
        for feature, tokens in zip(features, ids, strict=True)
    ]


def word(index: Index, token: int) -> str:
    """Return a token's text, made visible; its number where there is no tokenizer."""
    return visible(index.text.token(token))


def peak_tokens(index: Index, features: np.ndarray) -> np.ndarray:
    """Return the tokens on which features' strongest contexts peak, commonest first.

    Args:
        index: whose.
        features: [n] their numbers.

    Returns:
        [n, PEAKS] token ids; -1 where there are fewer.
    """
    parts = [
        _commonest(index, part) for part in np.split(features, range(_ROWS, len(features), _ROWS))
    ]
    return np.concatenate(parts)


def _commonest(index: Index, features: np.ndarray) -> np.ndarray:
    peaks = index.peaks[features]
    if not len(index.text):
        return np.full((len(features), PEAKS), -1)
    ids = np.where(peaks < 0, -1, index.text.ids[np.maximum(peaks, 0)])
    same = ids[:, :, None] == ids[:, None, :]
    is_first = ~np.tril(same, -1).any(2)
    most = ids.shape[1]
    rank = np.where(is_first & (ids >= 0), same.sum(2) * most - np.arange(most), 0)
    order = np.argsort(-rank, axis=1, kind="stable")[:, :PEAKS]
    found = np.take_along_axis(rank, order, 1) > 0
    return np.where(found, np.take_along_axis(ids, order, 1), -1)


def _short(values: np.ndarray) -> list[float]:
    """Return figures with four digits, which is all that is shown."""
    return [float(f"{value:.4g}") for value in values.tolist()]
