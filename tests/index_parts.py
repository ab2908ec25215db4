"""Parts of an index from random codes: no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monosemy.index.part import Entries, Misses, Part

CONTEXT = 64


def synthetic_parts(
    folder: Path, *, parts: int, rows: int = 64, width: int = 64, share: float = 0.1
) -> list[Path]:
    """Parts of some rows each, a document a row; share of places on which a feature fires."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(parts):
        fires = rng.random((width, rows * CONTEXT)) < share
        owner, places = np.nonzero(fires)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=width))])
        values = rng.random(len(places), dtype=np.float32) + 0.1
        ids = rng.integers(50, size=rows * CONTEXT).astype(np.int32)
        columns = {
            "ids": ids,
            "document": np.repeat(np.arange(rows, dtype=np.int32), CONTEXT),
            "start": np.tile(np.arange(CONTEXT, dtype=np.int32), rows),
            "end": np.tile(np.arange(1, CONTEXT + 1, dtype=np.int32), rows),
            "counted": np.ones(rows * CONTEXT, bool),
        }
        names = [f"{number}/{row}" for row in range(rows)]
        texts = ["".join(chr(65 + i % 26) for i in row) for row in ids.reshape(rows, CONTEXT)]
        part = Part(
            Entries(offsets, places.astype(np.int32), values),
            Misses.none(width),
            columns,
            names,
            texts,
        )
        made.append(folder / f"{number:03}")
        part.save(made[-1], {"n_tokens": rows * CONTEXT})
    return made
