"""What to call a feature in a line."""

from __future__ import annotations

from collections.abc import Sequence

from monosemy.index import Index
from monosemy.report.tokens import visible

_PEAKS = 3
"""Different tokens that stand for a feature without a name."""


def called(index: Index, feature: int) -> str:
    """Return the best name of a feature, else the tokens on which it fires most."""
    return call(index, [feature])[0]


def call(index: Index, features: Sequence[int]) -> list[str]:
    """Return what some features are called, as `called` does."""
    names, words = index.names, index.text.vocabulary
    seen: dict[int, str] = {}

    def word(token: int) -> str:
        if token not in seen:
            seen[token] = visible(words[token])
        return seen[token]

    places = index.peaks[list(features)][:, : 2 * _PEAKS]
    ids = index.text.ids[places]  # of place -1 too, which is left out below
    ids[places < 0] = -1
    lines = []
    for feature, row in zip(features, ids.tolist(), strict=True):
        peaks = list(dict.fromkeys(word(token) for token in row if token >= 0))[:_PEAKS]
        lines.append(names[feature][0] if feature in names else "  ".join(peaks) or "never fires")
    return lines
