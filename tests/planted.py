"""Text made of words drawn at random, and features that fire on one word each, or anywhere."""

from __future__ import annotations

import numpy as np

from monosemy.index import TokenTable
from monosemy.interpret.explain import Cutter

CONTEXT, ROWS_A_DOCUMENT, DOCUMENTS, WORDS = 64, 4, 80, 200


def text() -> tuple[TokenTable, np.ndarray]:
    """Text, and [places] the number of the word at each."""
    rng = np.random.default_rng(0)
    size = CONTEXT * ROWS_A_DOCUMENT
    words = rng.integers(WORDS, size=(DOCUMENTS, size))
    texts, starts, ends = [], [], []
    for row in words:
        pieces = [f" {name(word)}" for word in row]
        edges = np.cumsum([0, *map(len, pieces)])
        texts.append("".join(pieces))
        starts.append(edges[:-1])
        ends.append(edges[1:])
    flat = TokenTable(
        context=CONTEXT,
        ids=words.reshape(-1),
        vocabulary=[f" {name(word)}" for word in range(WORDS)],
        document=np.repeat(np.arange(DOCUMENTS), size),
        start=np.concatenate(starts),
        end=np.concatenate(ends),
        counted=np.arange(DOCUMENTS * size) % CONTEXT > 0,
        names=[f"document-{n}" for n in range(DOCUMENTS)],
        texts=texts,
    )
    return flat, words.reshape(-1)


def name(word: int) -> str:
    """A word, all letters, no part of another."""
    return "".join("abcdefghij"[int(digit)] for digit in f"{word:03}") + "x"


def cutter(**sizes: int) -> Cutter:
    """Features below 100 fire on the word of their number, the others on tokens at random."""
    flat, words = text()
    counted = np.flatnonzero(flat.counted)

    def entries(feature: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(feature)
        places = np.flatnonzero((words == feature) & flat.counted)
        if feature >= 100:
            places = np.sort(rng.choice(counted, len(counted) // WORDS, replace=False))
        return places, 4 + rng.random(len(places))

    return Cutter(flat, entries, **sizes)
