"""Words looked for in features' names and strongest contexts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from monosemy.index.index import Index

_CONTEXTS = 8
"""Strongest contexts of a feature that are searched."""
_BEFORE, _AFTER = 10, 3
"""Tokens around the strongest one."""
_NAME, _PEAK = 20.0, 4.0
"""What a hit in a name, or in the strongest token, counts, where one in a context counts 1."""


@dataclass(frozen=True, slots=True)
class Found:
    """A feature found by words."""

    feature: int
    score: float
    """Contexts that hold the words, names and strongest tokens weighted more."""
    names: list[str]


@dataclass(frozen=True, slots=True)
class SearchText:
    """All contexts that are searched as one string, so that a search is one pass over it."""

    text: str
    begins: list[int]
    """First character of each stretch."""
    features: np.ndarray
    """[stretches] whose it is."""
    weights: np.ndarray
    """[stretches]"""

    @classmethod
    def of(cls, index: Index) -> SearchText:
        """Gather the strongest contexts of an index's features."""
        pieces: list[str] = []
        features: list[int] = []
        weights: list[float] = []

        def add(feature: int, text: str, weight: float) -> None:
            pieces.append(text.lower())
            features.append(feature)
            weights.append(weight)

        table, context = index.text, index.text.context
        for feature in np.flatnonzero(index.counts).tolist():
            places = index.peaks[feature][:_CONTEXTS]
            places = places[places >= 0]
            row = places // context * context
            first = np.maximum(places - _BEFORE, row)
            last = np.minimum(places + _AFTER, row + context - 1)
            document = table.document[places]
            first = np.where(table.document[first] == document, first, places)
            last = np.where(table.document[last] == document, last, places)
            spans = (table.start[first], table.start[places], table.end[places], table.end[last])
            for number, *span in zip(document.tolist(), *(s.tolist() for s in spans), strict=True):
                text = table.text(number)
                add(feature, text[span[0] : span[3]], 1.0)
                add(feature, text[span[1] : span[2]], _PEAK)
        begins = np.cumsum([0, *(len(piece) + 1 for piece in pieces)])[:-1].tolist()
        return cls("\n".join(pieces), begins, np.array(features), np.array(weights))

    def search(self, words: str, count: int, names: Mapping[int, list[str]]) -> list[Found]:
        """Return the best `count` features that hold every word, in whatever stretches.

        Args:
            words: with white space between them.
            count: of features.
            names: what features are called; searched too.
        """
        wanted = words.lower().split()
        if not wanted:
            return []
        total: dict[int, float] = {}
        for number, word in enumerate(wanted):
            scores = self._scores(word)
            for feature, given in names.items():
                if hits := sum(word in name.lower() for name in given):
                    scores[feature] = scores.get(feature, 0.0) + _NAME * hits
            if number:
                scores = {f: total[f] + s for f, s in scores.items() if f in total}
            total = scores
        order = sorted(total, key=lambda feature: (-total[feature], feature))[:count]
        return [Found(feature, total[feature], names.get(feature, [])) for feature in order]

    def _scores(self, word: str) -> dict[int, float]:
        """Return the score of each feature that has the word in a stretch."""
        scores: dict[int, float] = {}
        at, stretch = self.text.find(word), -1
        while at >= 0:
            stretch = bisect_right(self.begins, at) - 1
            feature = int(self.features[stretch])
            scores[feature] = scores.get(feature, 0.0) + float(self.weights[stretch])
            # On with the next stretch: each counts once.
            following = self.begins[stretch + 1] if stretch + 1 < len(self.begins) else -1
            at = self.text.find(word, following) if following > 0 else -1
        return scores
