"""A part of an index: what some stretch of text left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monosemy.artefact import load_manifest, map_tensors, new_artefact, new_tensors
from monosemy.index.examples import MISSES
from monosemy.index.text import TEXT, TOKENS, Strings, write_strings

PART = "index part"
ENTRIES, EXAMPLES = "entries.safetensors", "examples.safetensors"


@dataclass(frozen=True, slots=True)
class Entries:
    """Every active entry, feature by feature."""

    offsets: np.ndarray
    """[width + 1] entries of feature f are those from offsets[f] to offsets[f+1]."""
    places: np.ndarray
    """[entries] place in the token table, ascending within a feature."""
    values: np.ndarray
    """[entries] activation there."""


@dataclass(frozen=True, slots=True)
class Misses:
    """Where each feature came nearest to firing without doing so, in the batches looked at."""

    miss_places: np.ndarray
    """[width, MISSES] -1 where there are fewer."""
    miss_scores: np.ndarray
    """[width, MISSES] pre-activation there."""

    @classmethod
    def none(cls, width: int) -> Misses:
        """Return those of features that were never looked at."""
        shape = (width, MISSES)
        return cls(np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32))

    def add(self, places: np.ndarray, scores: np.ndarray) -> None:
        """Take one candidate [width] each in, if it is nearer than the farthest kept."""
        rows, farthest = np.arange(len(scores)), self.miss_scores.argmin(1)
        nearer = scores > self.miss_scores[rows, farthest]
        rows, farthest = rows[nearer], farthest[nearer]
        self.miss_scores[rows, farthest] = scores[nearer]
        self.miss_places[rows, farthest] = places[nearer]

    def sort(self) -> None:
        """Put the nearest first."""
        order = np.argsort(-self.miss_scores, axis=1, kind="stable")
        self.miss_scores[:] = np.take_along_axis(self.miss_scores, order, 1)
        self.miss_places[:] = np.take_along_axis(self.miss_places, order, 1)


@dataclass(frozen=True, slots=True)
class Part:
    """Entries, and the rows of text that their places lead to."""

    entries: Entries
    misses: Misses
    columns: Mapping[str, np.ndarray]
    """Of the token table."""
    names: Sequence[str]
    texts: Sequence[str]

    def save(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Write it, whole or not at all.

        Raises:
            UserError: the disk refuses.
        """
        with new_artefact(folder, PART, manifest) as draft:
            write_arrays(draft / ENTRIES, asdict(self.entries))
            write_arrays(draft / EXAMPLES, asdict(self.misses))
            write_arrays(draft / TOKENS, self.columns)
            write_strings(draft / TEXT, {"names": self.names, "texts": self.texts})

    @classmethod
    def open(cls, folder: Path) -> Part:
        """Map what `save` wrote.

        Raises:
            UserError: it is not there, or damaged.
        """
        manifest = load_manifest(folder, PART)
        misses = map_tensors(folder, EXAMPLES, manifest)
        strings = map_tensors(folder, TEXT, manifest)
        return cls(
            Entries(**map_tensors(folder, ENTRIES, manifest)),
            Misses(**{name: a.reshape(-1, MISSES) for name, a in misses.items()}),
            map_tensors(folder, TOKENS, manifest),
            *(Strings(strings[n], strings[f"{n}_offsets"]) for n in ("names", "texts")),
        )


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a safetensors file, flattened."""
    files = new_tensors(path, {name: (a.dtype.name, a.size) for name, a in arrays.items()})
    for name, array in arrays.items():
        files[name][:] = array.reshape(-1)


def blocks(offsets: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of features with about `size` entries, or one feature with more."""
    first, width = 0, len(offsets) - 1
    while first < width:
        last = int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1
        last = min(max(last, first + 1), width)
        yield first, last
        first = last
