"""What to call a feature in a line."""

from __future__ import annotations

from monosemy.index import Index
from monosemy.report.tokens import visible

_PEAKS = 3


def called(index: Index, feature: int) -> str:
    """Return the best name of a feature, else the tokens on which it fires most."""
    names = index.names.get(feature)
    if names:
        return names[0]
    return "  ".join(peaks(index, feature)) or "never fires"


def peaks(index: Index, feature: int) -> list[str]:
    """Return the different tokens among those on which a feature fires most, spaces visible."""
    places = index.peaks[feature]
    ids = index.text.ids[places[places >= 0][: 2 * _PEAKS]].tolist()
    words = dict.fromkeys(visible(index.text.vocabulary[i]) for i in ids)
    return list(words)[:_PEAKS]
