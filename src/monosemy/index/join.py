"""Parts of an index joined into one: an external merge that holds a block of entries at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from monosemy.artefact import load_manifest, new_artefact, new_tensors
from monosemy.errors import UserError
from monosemy.index.examples import Examples, Rows
from monosemy.index.part import ENTRIES, EXAMPLES, PART, Entries, Misses, Part, blocks, write_arrays
from monosemy.index.text import COLUMNS, TEXT, TOKENS, VOCABULARY, write_strings
from monosemy.progress import Task

KIND = "index"
KEPT = ("human.jsonl", "explanations.jsonl")
"""Files of an index that people made or paid for: they outlive the text."""

_BLOCK = 2**23
"""Entries held at once."""
_MOST_PLACES = 2**31 - 1


def join_parts(
    folders: Sequence[Path], folder: Path, manifest: dict[str, Any], vocabulary: Sequence[str]
) -> None:
    """Write the index of several parts' text, and each feature's figures and examples.

    Args:
        folders: of the parts, in the order of their text.
        folder: of the index; one that is there is replaced, but for what people made.
        manifest: fields to be kept with it; counts are added.
        vocabulary: text of each token id.

    Raises:
        UserError: a part is damaged, there are too many tokens, or the disk refuses.
    """
    parts = [Part.open(part) for part in folders]
    begins = np.cumsum([0, *(len(part.columns["ids"]) for part in parts)])
    if begins[-1] > _MOST_PLACES:
        raise UserError(
            f"{begins[-1]:,} tokens are more than an index holds",
            f"allowed: {_MOST_PLACES:,}; look at fewer (--tokens)",
        )
    offsets = np.sum([part.entries.offsets for part in parts], axis=0)
    width, n_entries = len(offsets) - 1, int(offsets[-1])
    counts = [load_manifest(part, PART)["n_tokens"] for part in folders]
    manifest = {**manifest, "width": width, "n_tokens": sum(counts), "n_entries": n_entries}
    with new_artefact(folder, KIND, manifest, keep=KEPT) as draft:
        rows = _join_text(parts, begins, draft, manifest["context"])
        write_strings(draft / VOCABULARY, {"vocabulary": vocabulary})
        out = _new_entries(draft / ENTRIES, offsets)
        examples, misses = Examples.none(width), Misses.none(width)
        with Task("features", width, "features") as task:
            for first, last in blocks(offsets, _BLOCK):
                places, values = _gather(parts, begins, offsets, first, last)
                block = slice(offsets[first], offsets[last])
                out.places[block], out.values[block] = places, values
                for feature in range(first, last):
                    mine = slice(*(offsets[feature : feature + 2] - offsets[first]))
                    examples.add(feature, places[mine], values[mine], rows)
                task.advance(last - first)
        for part, begin in zip(parts, begins, strict=False):
            for places, scores in zip(*(a.T for a in asdict(part.misses).values()), strict=True):
                misses.add(np.where(places < 0, -1, places + begin), scores)
        misses.sort()
        write_arrays(draft / EXAMPLES, asdict(examples) | asdict(misses))


def _new_entries(path: Path, offsets: np.ndarray) -> Entries:
    size = int(offsets[-1])
    shapes = {
        "places": ("int32", size),
        "values": ("float32", size),
        "offsets": ("int64", len(offsets)),
    }
    entries = Entries(**new_tensors(path, shapes))
    entries.offsets[:] = offsets
    return entries


def _gather(
    parts: Sequence[Part], begins: np.ndarray, offsets: np.ndarray, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return places and values of some features' entries, of all parts."""
    size = int(offsets[last] - offsets[first])
    places, values = np.empty(size, np.int32), np.empty(size, np.float32)
    into = offsets[first:last] - offsets[first]  # where each feature's next entry goes
    for part, begin in zip(parts, begins, strict=False):
        mine = part.entries.offsets[first : last + 1]
        counts = np.diff(mine)
        target = np.arange(mine[-1] - mine[0]) + np.repeat(into - (mine[:-1] - mine[0]), counts)
        places[target] = part.entries.places[mine[0] : mine[-1]] + np.int32(begin)
        values[target] = part.entries.values[mine[0] : mine[-1]]
        into = into + counts
    return places, values


def _join_text(parts: Sequence[Part], begins: np.ndarray, draft: Path, context: int) -> Rows:
    """Write the token table and the texts, a document once though it stands in several parts."""
    kinds = {name: (kind, int(begins[-1])) for name, kind in COLUMNS.items()}
    columns = new_tensors(draft / TOKENS, kinds)
    numbers: dict[str, int] = {}
    texts: list[str] = []
    for part, begin in zip(parts, begins, strict=False):
        for name, text in zip(part.names, part.texts, strict=True):
            if name not in numbers:
                numbers[name] = len(texts)
                texts.append(text)
        renumber = np.array([*(numbers[name] for name in part.names), -1], np.int32)
        for name, column in columns.items():
            own = part.columns[name]
            column[begin : begin + len(own)] = renumber[own] if name == "document" else own
    write_strings(draft / TEXT, {"names": list(numbers), "texts": texts})
    return Rows(context, columns["ids"], columns["document"])
