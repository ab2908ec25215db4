"""The text of an index: from a place back to its document and characters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from monosemy.artefact import map_tensors, new_tensors
from monosemy.corpus import TokenBatch

TOKENS, TEXT, VOCABULARY = "tokens.safetensors", "text.safetensors", "vocabulary.safetensors"
COLUMNS = {"ids": "int32", "document": "int32", "start": "int32", "end": "int32", "counted": "bool"}


class Strings(Sequence[str]):
    """Many strings, kept as UTF-8 bytes and decoded when asked for."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self.data, self.offsets = data, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        first, last = self.offsets[number], self.offsets[number + 1]
        return self.data[first:last].tobytes().decode("utf-8", "replace")


def write_strings(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Write columns of strings; column `x` as bytes `x` and where each begins, `x_offsets`."""
    raw = {name: [text.encode("utf-8", "replace") for text in of] for name, of in columns.items()}
    shapes = {}
    for name, texts in raw.items():
        shapes[name] = ("uint8", sum(map(len, texts)))
        shapes[f"{name}_offsets"] = ("int64", len(texts) + 1)
    arrays = new_tensors(path, shapes)
    for name, texts in raw.items():
        arrays[name][:] = np.frombuffer(b"".join(texts), np.uint8)
        arrays[f"{name}_offsets"][:] = np.cumsum([0, *map(len, texts)])


@dataclass(frozen=True)
class TokenTable:
    """Rows of tokens as they went through the model. A place is an index into them, flattened.

    Rows of a document follow each other. Every array is over places.
    """

    context: int
    """Tokens in a row."""
    ids: np.ndarray
    document: np.ndarray
    """Index into `names` and `texts`; -1 for tokens from no document."""
    start: np.ndarray
    """First character of each token."""
    end: np.ndarray
    """Character after its last."""
    counted: np.ndarray
    """True where the token policy counts the position."""
    names: Sequence[str]
    texts: Sequence[str]
    vocabulary: Sequence[str]
    """Text of each token id; empty where the model has no tokenizer."""

    @classmethod
    def open(cls, folder: Path, manifest: Mapping[str, Any]) -> TokenTable:
        """Map the table of an index."""
        mapped = map_tensors(folder, TOKENS, manifest)
        # Plain arrays over the mapped memory: a slice of a `memmap` takes ten times as long.
        columns: dict[str, Any] = {name: np.asarray(a) for name, a in mapped.items()}
        strings = map_tensors(folder, TEXT, manifest) | map_tensors(folder, VOCABULARY, manifest)
        texts: dict[str, Any] = {
            name: Strings(np.asarray(strings[name]), np.asarray(strings[f"{name}_offsets"]))
            for name in ("names", "texts", "vocabulary")
        }
        return cls(manifest["context"], **columns, **texts)

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, document: int) -> str:
        """Return a document's text."""
        return self._decoded(document)

    @cached_property
    def _decoded(self) -> Callable[[int], str]:
        return lru_cache(maxsize=256)(self.texts.__getitem__)

    def token(self, number: int) -> str:
        """Return the text of a token id; its number where the model has no tokenizer."""
        return self.vocabulary[number] if number < len(self.vocabulary) else str(number)

    def window(self, place: int, size: int) -> np.ndarray:
        """Return the places of `size` tokens around one, of its row and document.

        It stands at two thirds, since what comes before a token is what a feature sees.
        """
        row = place // self.context * self.context
        inside = row + np.flatnonzero(
            self.document[row : row + self.context] == self.document[place]
        )
        low, high = int(inside[0]), int(inside[-1]) + 1
        begin = max(min(place - size * 2 // 3, high - size), low)
        return np.arange(begin, min(begin + size, high))

    def words(self, places: np.ndarray) -> list[str]:
        """Return the text of tokens of one document that follow each other.

        Tokens that are bytes of one character all span it; only the first shows it.
        """
        text = self.text(int(self.document[places[0]]))
        start, end = self.start[places].copy(), self.end[places]
        start[1:] = np.maximum(start[1:], end[:-1])
        return [text[a:b] for a, b in zip(start.tolist(), end.tolist(), strict=True)]

    def places_of(self, document: int) -> np.ndarray:
        """Return the places of a document's tokens, in the order of its text."""
        order, bounds = self._by_document
        return order[bounds[document] : bounds[document + 1]]

    @cached_property
    def _by_document(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.document, kind="stable")
        bounds = np.searchsorted(self.document[order], np.arange(len(self.names) + 1))
        return order, bounds

    def matching(self, pattern: re.Pattern[str]) -> np.ndarray:
        """Return the places of tokens that have a character of a match in their document's text."""
        found = [self._matching_in(document, pattern) for document in range(len(self.names))]
        return np.sort(np.concatenate([np.zeros(0, np.int64), *found]))

    def _matching_in(self, document: int, pattern: re.Pattern[str]) -> np.ndarray:
        spans = [m.span() for m in pattern.finditer(self.text(document)) if m.end() > m.start()]
        places = self.places_of(document)
        if not spans or not len(places):
            return np.zeros(0, np.int64)
        first, last = np.array(spans).T
        start, end = self.start[places], self.end[places]
        before = np.searchsorted(first, end)  # matches that begin before a token ends
        over = np.searchsorted(last, start, side="right")  # matches that end before it begins
        return places[before > over]

    def with_token(self, token: str) -> np.ndarray:
        """Return the places of a token: of its exact text, else of that without white space."""
        exact = [i for i, text in enumerate(self.vocabulary) if text == token]
        wanted = exact or [i for i, text in enumerate(self.vocabulary) if text.strip() == token]
        return np.flatnonzero(np.isin(self.ids, wanted))


class TokenRecorder:
    """Collects batches of tokens, with their documents numbered through all of them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.texts: list[str] = []
        self.places = 0
        self._numbers: dict[str, int] = {}
        self._parts: list[dict[str, np.ndarray]] = []

    def add(self, batch: TokenBatch) -> np.ndarray:
        """Add the rows of a batch; return the places of its counted tokens."""
        for document in batch.documents:
            if document.id not in self._numbers:
                self._numbers[document.id] = len(self._numbers)
                self.names.append(document.id)
                self.texts.append(document.text)
        renumber = np.array([*(self._numbers[d.id] for d in batch.documents), -1])
        columns = {
            "ids": batch.tokens,
            "document": renumber[batch.document.cpu().numpy()],
            "start": batch.start,
            "end": batch.end,
            "counted": batch.counted,
        }
        part = {n: np.asarray(a).reshape(-1).astype(COLUMNS[n]) for n, a in columns.items()}
        self._parts.append(part)
        counted = np.flatnonzero(part["counted"]) + self.places
        self.places += len(part["ids"])
        return counted

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns of the table."""
        empty = {name: np.zeros(0, kind) for name, kind in COLUMNS.items()}
        parts = [empty, *self._parts]
        return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
