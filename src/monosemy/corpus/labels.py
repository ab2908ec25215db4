"""Labels of tokens, from labels of characters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from monosemy.corpus.document import Document
from monosemy.corpus.tokens import TokenBatch
from monosemy.errors import UserError

Spans = Mapping[str, Sequence[tuple[int, int]]]
"""For each name, the stretches of characters [from, to) of a text at which it is true."""

# Rows of a stream are shuffled, so that a document comes up in many batches; this many stay marked.
_KEPT = 256

_WHITE = np.array([c for c in range(0x10000) if chr(c).isspace()], dtype=np.uint32)


def label_tokens(
    batch: TokenBatch, spans: Callable[[Document], Spans | None], names: Sequence[str]
) -> tuple[Bool[Tensor, "names batch context"], Bool[Tensor, "batch context"]]:
    """Say which tokens have which labels.

    A token has a label if one of its characters that is not white space lies in a stretch where
    the label is true. A token of white space alone has it if any of its characters does.

    Args:
        batch: tokens that know their characters.
        spans: the stretches of a document, such as
            `lambda document: syntax_spans(document.text)` or the `spans` of a `LabelledCorpus`;
            None for a document of which nothing is known. Called once or seldom for each document
            if it is the same object each time: what it returned last is remembered.
        names: the labels, in the order wanted; one that a document's stretches do not name is
            nowhere true in it.

    Returns:
        Whether each label holds at each token, and at which tokens that is known: not at inserted
        ones, at padding, or in documents whose `spans` are None.

    Raises:
        UserError: a stretch lies outside its document's text.
    """
    origin, start, end = (t.cpu().numpy() for t in (batch.document, batch.start, batch.end))
    labels = np.zeros((len(names), *origin.shape), dtype=bool)
    known = np.zeros(origin.shape, dtype=bool)
    for number, document in enumerate(batch.documents):
        mine = origin == number
        found = label_document(document, start[mine], end[mine], spans, names)
        if found is not None:
            known |= mine
            labels[:, mine] = found
    device = batch.tokens.device
    return torch.from_numpy(labels).to(device), torch.from_numpy(known).to(device)


def label_document(
    document: Document,
    start: Int[np.ndarray, " tokens"],
    end: Int[np.ndarray, " tokens"],
    spans: Callable[[Document], Spans | None],
    names: Sequence[str],
) -> Bool[np.ndarray, "names tokens"] | None:
    """Say which labels hold at tokens of one document; None where its `spans` are None.

    Args:
        document: the text.
        start: first character of each token.
        end: the character after its last.
        spans: as for `label_tokens`.
        names: likewise.

    Raises:
        UserError: a stretch lies outside its document's text.
    """
    marked = _marked(document, spans, tuple(names))
    return None if marked is None else marked.of_tokens(start, end)


@dataclass(frozen=True, slots=True)
class _Marked:
    """A text, and which labels hold at each of its characters."""

    names: int
    bits: UInt8[np.ndarray, "chars bytes"]
    """One bit a label; a row of zeros at the end."""
    white: Bool[np.ndarray, " chars"]

    def of_tokens(
        self, start: Int[np.ndarray, " tokens"], end: Int[np.ndarray, " tokens"]
    ) -> Bool[np.ndarray, "names tokens"]:
        if not len(start):
            return np.zeros((self.names, 0), dtype=bool)
        first, last = start.min(), end.max()
        bits, white = self.bits[first : last + 1], self.white[first : last + 1]
        edges = np.stack([start, end], axis=1).ravel() - first
        solid = np.where(white[:, None], 0, bits)
        blank = np.logical_and.reduceat(white, edges)[::2]
        found = np.where(blank[:, None], _any(bits, edges), _any(solid, edges))
        found[start == end] = 0  # no character: `reduceat` took the next
        return np.unpackbits(found, axis=1, count=self.names).T.astype(bool)


def _any(
    bits: UInt8[np.ndarray, "chars bytes"], edges: Int[np.ndarray, " twice_tokens"]
) -> UInt8[np.ndarray, "tokens bytes"]:
    return np.bitwise_or.reduceat(bits, edges, axis=0)[::2]


@lru_cache(maxsize=_KEPT)
def _marked(
    document: Document, spans: Callable[[Document], Spans | None], names: tuple[str, ...]
) -> _Marked | None:
    found = spans(document)
    if found is None:
        return None
    length = len(document.text)
    inside = np.zeros((len(names), length + 1), dtype=bool)
    for row, name in zip(inside, names, strict=True):
        edges = np.array(found.get(name, ()), dtype=np.int64).reshape(-1, 2)
        if edges.size and (edges.min() < 0 or edges.max() > length):
            raise UserError(
                f"{document.id}: a stretch of `{name}` lies outside its {length} characters",
                "stretches are [from, to), counted in characters from 0",
            )
        begun, ended = (np.bincount(edge, minlength=length + 1) for edge in edges.T)
        row[:] = np.cumsum(begun - ended) > 0
    characters = np.frombuffer(document.text.encode("utf-32-le", "surrogatepass"), np.uint32)
    white = np.append(np.isin(characters, _WHITE), False)
    return _Marked(len(names), np.packbits(inside, axis=0).T.copy(), white)
