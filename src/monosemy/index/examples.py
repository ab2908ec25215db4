"""Which windows of text stand for a feature, and the figures of its activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WINDOW = 32
"""Tokens in a window; the strongest activation in it counts."""
TOP, GROUPS, DRAWN, RANDOM, MISSES = 24, 5, 4, 8, 12
BINS = 30
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)

_SHARES = np.array(QUANTILES)
_CANDIDATES = 192
"""Strongest windows among which the shown ones are looked for."""
_SAME = 6
"""Tokens, up to the peak, that two windows share if they are the same text again."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Of every feature; places are -1 where there are fewer."""

    max: np.ndarray
    """[width]"""
    mean: np.ndarray
    """[width] mean activation where it fires."""
    histogram: np.ndarray
    """[width, BINS] counts in equal bins from 0 to `max`."""
    quantiles: np.ndarray
    """[width, len(QUANTILES)] of activations where it fires."""
    top: np.ndarray
    """[width, TOP] places of the strongest windows' peaks: of different documents as far as there
    are, never the same text twice."""
    groups: np.ndarray
    """[width, GROUPS, DRAWN] from fifths of its windows by strength, strongest fifth first."""
    random: np.ndarray
    """[width, RANDOM] from all its windows, one of each of as many equal stretches of text."""

    @classmethod
    def none(cls, width: int) -> Examples:
        """Return those of features that never fire."""
        return cls(
            np.zeros(width, np.float32),
            np.zeros(width, np.float32),
            np.zeros((width, BINS), np.int64),
            np.zeros((width, len(QUANTILES)), np.float32),
            np.full((width, TOP), -1, np.int32),
            np.full((width, GROUPS, DRAWN), -1, np.int32),
            np.full((width, RANDOM), -1, np.int32),
        )

    def add(
        self,
        feature: int,
        places: np.ndarray,
        values: np.ndarray,
        table: Rows,
    ) -> None:
        """Fill in one feature, from its places, ascending, and its activations."""
        if not len(places):
            return
        top = float(values.max())
        self.max[feature], self.mean[feature] = top, values.mean()
        bins = np.minimum((values * (BINS / top)).astype(np.int64), BINS - 1)
        self.histogram[feature] = np.bincount(bins, minlength=BINS)
        self.quantiles[feature] = _quantiles(np.sort(values))
        peaks, strength = _peaks(places, values, table.context)
        order = np.argsort(-strength, kind="stable")
        chosen = table.different(peaks[order[:_CANDIDATES]], TOP)
        self.top[feature, : len(chosen)] = chosen
        chance = np.random.default_rng(feature).random((GROUPS + 1, max(DRAWN, RANDOM)))
        for number, group in enumerate(np.array_split(order, GROUPS)):
            drawn = _draw(len(group), chance[number, :DRAWN])  # of strongest first
            self.groups[feature, number, : len(drawn)] = peaks[group[drawn]]
        drawn = _draw(len(peaks), chance[GROUPS, :RANDOM])
        self.random[feature, : len(drawn)] = peaks[drawn]


@dataclass(frozen=True, slots=True)
class Rows:
    """What choosing needs of the token table."""

    context: int
    ids: np.ndarray
    document: np.ndarray

    def different(self, peaks: np.ndarray, count: int) -> np.ndarray:
        """Return so many peaks, none of text that stood earlier, first one a document."""
        before = np.maximum(peaks[:, None] - np.arange(_SAME), 0)
        document = self.document[peaks]
        inside = (before // self.context == peaks[:, None] // self.context) & (
            self.document[before] == document[:, None]
        )
        text = np.where(inside, self.ids[before], -1)
        numbers = document.tolist()
        seen: set[bytes] = set()
        first: list[int] = []
        later: list[int] = []
        documents: set[int] = set()
        for i in range(len(peaks)):
            key = text[i].tobytes()
            if key in seen:
                continue
            seen.add(key)
            (later if numbers[i] in documents else first).append(i)
            documents.add(numbers[i])
            if len(first) == count:
                break
        return peaks[(first + later)[:count]]


def _peaks(places: np.ndarray, values: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of each window's largest activation, and that."""
    in_row = -(-context // WINDOW)
    window = places // context * in_row + places % context // WINDOW
    begins = np.flatnonzero(np.diff(window, prepend=-1))
    strongest = np.maximum.reduceat(values, begins)
    owner = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(window)))
    at = np.flatnonzero(values == strongest[owner])
    at = at[np.diff(owner[at], prepend=-1) > 0]
    return places[at], strongest


def _quantiles(ascending: np.ndarray) -> np.ndarray:
    """Return `QUANTILES`, in between two values on the line between them, as NumPy has them."""
    at = _SHARES * (len(ascending) - 1)
    below = at.astype(np.int64)
    above = np.minimum(below + 1, len(ascending) - 1)
    return ascending[below] + (at - below) * (ascending[above] - ascending[below])


def _draw(size: int, chance: np.ndarray) -> np.ndarray:
    """Return as many different numbers below `size`, ascending; all where there are no more.

    One of each of as many equal stretches, where a number from 0 to 1 says.
    """
    if size <= len(chance):
        return np.arange(size)
    edges = np.arange(len(chance) + 1) * size // len(chance)
    return edges[:-1] + (chance * np.diff(edges)).astype(np.int64)
