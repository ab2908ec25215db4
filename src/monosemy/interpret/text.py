"""The text that was looked at: from a token's number back to its document and characters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monosemy.corpus import TokenBatch


@dataclass(frozen=True, slots=True)
class TextTable:
    """Rows of tokens as they went through the model, with the documents they come from.

    Counted tokens are numbered from 0 in the order they were read.
    """

    document: np.ndarray
    """[rows, context] index into `ids` and `texts`; -1 for tokens from no document."""
    start: np.ndarray
    """[rows, context] first character of each token."""
    end: np.ndarray
    """[rows, context] character after its last."""
    number: np.ndarray
    """[rows, context] number of each counted token; -1 for others."""
    ids: list[str]
    texts: list[str]

    @property
    def places(self) -> np.ndarray:
        """[counted tokens] place of each counted token in the flattened rows."""
        return np.flatnonzero(self.number.reshape(-1) >= 0)

    def window(self, place: int, size: int) -> tuple[list[str], np.ndarray, int]:
        """Cut `size` tokens out of the row and document of a place, the place a bit past centre.

        Returns:
            The tokens' text, their numbers (-1: not counted), and the index of the place.
        """
        row, time = divmod(place, self.document.shape[1])
        inside = np.flatnonzero(self.document[row] == self.document[row, time])
        low, high = inside[0], inside[-1] + 1
        begin = max(min(time - size * 2 // 3, high - size), low)
        times = slice(begin, min(begin + size, high))
        text = self.texts[self.document[row, time]]
        start, end = self.start[row, times].copy(), self.end[row, times]
        # Tokens that are bytes of one character all span it; only the first shows it.
        start[1:] = np.maximum(start[1:], end[:-1])
        words = [text[a:b] for a, b in zip(start, end, strict=True)]
        return words, self.number[row, times], int(time - begin)


class TextRecorder:
    """Collects batches of tokens into a `TextTable`."""

    def __init__(self) -> None:
        self._documents: dict[str, int] = {}
        self._texts: list[str] = []
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._counted = 0

    def add(self, batch: TokenBatch) -> None:
        """Add the rows of a batch."""
        for document in batch.documents:
            if document.id not in self._documents:
                self._documents[document.id] = len(self._documents)
                self._texts.append(document.text)
        renumber = np.array([*(self._documents[d.id] for d in batch.documents), -1])
        source = renumber[batch.document.numpy()]
        counted = batch.counted.numpy()
        number = np.where(
            counted, self._counted + np.cumsum(counted).reshape(counted.shape) - 1, -1
        )
        self._counted += int(counted.sum())
        arrays = (source, batch.start.numpy(), batch.end.numpy(), number)
        self._parts.append(tuple(a.astype(np.int32) for a in arrays))

    def table(self) -> TextTable:
        """Return everything added."""
        document, start, end, number = (np.concatenate(a) for a in zip(*self._parts, strict=True))
        return TextTable(document, start, end, number, list(self._documents), self._texts)
