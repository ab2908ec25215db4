"""Contexts of a feature: some to explain it by, others, of other documents, to test that on."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from monosemy.index import Exemplar, TokenTable

FEWEST = 5
"""Contexts that a feature needs on either side."""
QUANTILES = 4
"""Groups of equally many windows, by their strongest activation, that contexts are drawn from."""

_TOP_SHARE = 0.2
"""Share of the contexts to explain by that are simply the strongest."""
_ALIKE = 0.5
"""Share of their runs of three tokens that windows may have in common (Jaccard)."""
_TRIES = 8
"""Windows looked at for each one wanted, before a feature makes do with fewer."""

Entries = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""A feature to the places where it fires, ascending, and its activations there."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """What a feature is explained by, and what the explanation is tested on.

    No document is on both sides, no two windows overlap, and none is nearly the same as another.
    """

    feature: int
    top: float
    """Its largest activation anywhere."""
    rate: float
    """Share of all windows in which it fires."""
    explain: list[Exemplar]
    """Windows in which it fires, strongest first: the very strongest, and some of each quantile."""
    test: list[Exemplar]
    """The same of other documents, evenly from all quantiles."""
    negatives: list[Exemplar]
    """Windows of the test's documents in which it fires nowhere."""

    @property
    def lacking(self) -> str:
        """Why there are too few to explain and test it; "" if there are enough."""
        kinds = (("to explain it by", self.explain), ("to test that on", self.test))
        short = [f"{len(found)} contexts {what}" for what, found in kinds if len(found) < FEWEST]
        return f"only {' and '.join(short)}, {FEWEST} are needed" if short else ""


class Cutter:
    """Cuts contexts of features out of text.

    Documents are split first, by a hash of their name and the seed; then windows are drawn on
    either side. What a feature gets depends on the text and the seed alone.

    Args:
        text: what was looked at.
        entries: who fires where in it.
        window: tokens in a context.
        explain: contexts to explain by.
        test: contexts to test on, and as many in which the feature does not fire.
        seed: of the split and of what is drawn.
    """

    def __init__(
        self,
        text: TokenTable,
        entries: Entries,
        *,
        window: int = 32,
        explain: int = 20,
        test: int = 20,
        seed: int = 0,
    ) -> None:
        self.text, self.entries, self.window = text, entries, min(window, text.context)
        self.explain, self.test, self.seed = explain, test, seed
        testing = [_in_second_half(name, seed) for name in text.names]
        self._testing = np.array([*testing, False])
        inside = text.counted & (text.document >= 0)
        self._windows = len(np.unique(np.flatnonzero(inside) // self.window))
        self._test_places = np.flatnonzero(inside & self._testing[text.document])

    def cut(self, feature: int) -> Contexts:
        """Return the contexts of a feature; fewer than asked for, even none, if it fires rarely."""
        places, values = self.entries(feature)
        inside = self.text.document[places] >= 0
        places, values = places[inside].astype(np.int64), values[inside]
        peaks = _peak_of_each_cell(places, values, self.window)
        testing = self._testing[self.text.document[places[peaks]]]
        draw = _Draw(self, feature, places, values)
        explain = draw.firing(peaks[~testing], self.explain, round(_TOP_SHARE * self.explain))
        test = draw.firing(peaks[testing], self.test, 0)
        return Contexts(
            feature=feature,
            top=float(values.max(initial=0.0)),
            rate=len(peaks) / max(self._windows, 1),
            explain=explain,
            test=test,
            negatives=draw.silent(self._test_places, self.test),
        )


class _Draw:
    """Windows of one feature, drawn so that no two overlap or are nearly the same."""

    def __init__(
        self, cutter: Cutter, feature: int, places: np.ndarray, values: np.ndarray
    ) -> None:
        self._cutter, self._text, self._window = cutter, cutter.text, cutter.window
        self._places, self._values = places, values
        self._rng = np.random.default_rng([cutter.seed, feature])
        self._spans: list[tuple[int, int]] = []
        self._runs: list[set[tuple[str, ...]]] = []

    def firing(self, peaks: np.ndarray, count: int, strongest: int) -> list[Exemplar]:
        """Draw windows around entries: the strongest, and the rest evenly from all quantiles."""
        order = peaks[np.argsort(-self._values[peaks], kind="stable")]
        found = self._take(self._places[order], strongest)
        groups = np.array_split(order, QUANTILES)
        for left, group in zip(range(QUANTILES, 0, -1), groups, strict=True):
            quota = -(-(count - len(found)) // left)
            found += self._take(self._spread(self._places[group]), quota)
        return sorted(found, key=lambda e: -e.activations[e.peak])

    def silent(self, places: np.ndarray, count: int) -> list[Exemplar]:
        """Draw windows in which the feature does not fire on any token."""
        if not len(places):
            return []
        drawn = places[self._rng.integers(len(places), size=_TRIES * count)]
        return self._take(drawn, count, fires=False)

    def _spread(self, places: np.ndarray) -> np.ndarray:
        """Shuffle, every document's first before any document's second."""
        places = self._rng.permutation(places)
        documents = self._text.document[places]
        order = np.argsort(documents, kind="stable")
        sizes = np.unique(documents, return_counts=True)[1]
        turn = np.empty(len(places), np.int64)
        turn[order] = np.concatenate([np.arange(n) for n in sizes]) if len(sizes) else []
        return places[np.argsort(turn, kind="stable")]

    def _take(self, places: np.ndarray, count: int, *, fires: bool = True) -> list[Exemplar]:
        windows = (self._cut(int(place), fires) for place in places[: _TRIES * count])
        return list(itertools.islice(filter(None, windows), count))

    def _cut(self, place: int, fires: bool) -> Exemplar | None:
        """Return the window around a place, or None if it must not be used."""
        begin, end = self._span(place)
        if any(begin < b and a < end for a, b in self._spans):
            return None
        found = slice(*np.searchsorted(self._places, [begin, end]))
        if (found.start == found.stop) == fires:
            return None
        tokens = self._text.words(np.arange(begin, end))
        runs = _runs(tokens)
        if any(len(runs & other) >= _ALIKE * len(runs | other) for other in self._runs):
            return None
        self._spans.append((begin, end))
        self._runs.append(runs)
        activations = np.zeros(end - begin)
        activations[self._places[found] - begin] = self._values[found]
        peak = int(activations.argmax()) if fires else place - begin
        name = self._text.names[self._text.document[place]]
        return Exemplar(name, tokens, activations.tolist(), peak)

    def _span(self, place: int) -> tuple[int, int]:
        """Return where a window begins and ends, in the row and document of a place.

        The place lies anywhere in it but at its beginning, so that where a token stands says
        nothing about whether the feature fires on it.
        """
        row = place - place % self._text.context
        documents = self._text.document[row : row + self._text.context]
        same = np.flatnonzero(documents == documents[place - row]) + row
        before = int(self._rng.integers(self._window // 4, self._window))
        begin = max(min(place - before, int(same[-1]) + 1 - self._window), int(same[0]))
        return begin, min(begin + self._window, int(same[-1]) + 1)


def _peak_of_each_cell(places: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Return the strongest entry of every stretch of `size` places that has one."""
    cells = places // size
    order = np.lexsort((-values, cells))
    return order[np.unique(cells[order], return_index=True)[1]]


def _runs(tokens: Sequence[str]) -> set[tuple[str, ...]]:
    """Return the runs of three tokens in a window, whatever their case, digits and spaces."""
    words = [re.sub(r"\d", "0", word) for token in tokens if (word := token.strip().casefold())]
    return {tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}


def _in_second_half(name: str, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
    return digest[0] % 2 == 1
