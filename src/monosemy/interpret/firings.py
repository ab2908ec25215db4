"""Which features fire where, by token id, over some text: what patterns are learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from monosemy.activations import counted_activations
from monosemy.coders import Code, SparseCoder
from monosemy.corpus import TokenBatch, TokenStream
from monosemy.interpret.graph import START, as_read, look_up
from monosemy.lm import LM
from monosemy.progress import Task


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of tokens as they went through the model. A place is an index into them, flattened."""

    tokens: np.ndarray
    """[rows, context] ids; `START` at BOS and padding."""
    counted: np.ndarray
    """[rows, context] True where the token policy counts the position, and it is not BOS."""
    document: np.ndarray
    """[rows, context] number of the document; -1 for tokens from none."""

    @property
    def n_tokens(self) -> int:
        """Number of counted tokens."""
        return int(self.counted.sum())

    @classmethod
    def of(cls, batch: TokenBatch, bos: int | None, documents: dict[str, int]) -> TokenRows:
        """Return a batch's rows; `documents` holds documents' numbers by id and takes new ones."""
        ids = as_read(batch.tokens.numpy(), bos, batch.attention_mask.numpy())
        numbers = [documents.setdefault(d.id, len(documents)) for d in batch.documents]
        document = np.array([*numbers, -1], dtype=np.int32)[batch.document.numpy()]
        return cls(ids.astype(np.int32), batch.counted.numpy() & (ids != START), document)


@dataclass(frozen=True, slots=True)
class Firings:
    """Every active entry of a coder over some rows, feature by feature."""

    offsets: np.ndarray
    """[width + 1] entries of feature f are those from offsets[f] to offsets[f+1]."""
    places: np.ndarray
    """[entries] place in the flattened rows, ascending within a feature."""
    values: np.ndarray
    """[entries] activation there."""

    @property
    def counts(self) -> np.ndarray:
        """[width] tokens on which each feature fired."""
        return np.diff(self.offsets)

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places where a feature fires, ascending, and its activations."""
        part = slice(self.offsets[feature], self.offsets[feature + 1])
        return self.places[part], self.values[part]

    def of_all(
        self, features: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the entries of several: index in `features`, place, activation; in that order."""
        chosen = np.asarray(features, dtype=np.int64)
        first, counts = self.offsets[chosen], self.counts[chosen]
        index = np.repeat(np.arange(len(chosen)), counts)
        entry = np.arange(len(index)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        return index, self.places[entry], self.values[entry]

    def at(
        self, features: np.ndarray, index: np.ndarray, places: np.ndarray, size: int
    ) -> np.ndarray:
        """Return activations of `features[index]` at places of `size` in all; 0: does not fire."""
        owner, place, values = self.of_all(features)
        return look_up(owner * size + place, values, index * size + places, 0)


@torch.no_grad()
def collect_firings(
    lm: LM, stream: TokenStream, hookpoint: str, coders: Sequence[SparseCoder], tokens: int
) -> tuple[TokenRows, list[Firings]]:
    """Stream text through a model once and keep every active entry of several coders.

    Memory: 12 bytes for each active entry, so about 38 MB for 100,000 tokens at L0 32.

    Args:
        lm: the model.
        stream: rows of text.
        hookpoint: where the coders read.
        coders: whose features are looked at.
        tokens: counted tokens to look at; the batch that reaches them is used whole.
    """
    parts: list[TokenRows] = []
    entries: list[list[tuple[np.ndarray, ...]]] = [[] for _ in coders]
    documents: dict[str, int] = {}
    seen = size = 0
    with Task("features", tokens) as task:
        for batch in stream:
            rows = TokenRows.of(batch, stream.tokenizer.bos_token_id, documents)
            parts.append(rows)
            places = np.flatnonzero(rows.counted) + size
            batch = replace(batch, counted=torch.from_numpy(rows.counted))
            x = counted_activations(lm, batch, [hookpoint])[hookpoint]
            for coder, into in zip(coders, entries, strict=True):
                into.append(_entries(coder.encode_sparse(x), places))
            seen, size = seen + len(x), size + rows.counted.size
            task.advance(len(x))
            if seen >= tokens:
                break
    columns = ((part.tokens, part.counted, part.document) for part in parts)
    whole = TokenRows(*(np.concatenate(a) for a in zip(*columns, strict=True)))
    return whole, [_by_feature(e, c.width) for e, c in zip(entries, coders, strict=True)]


def _entries(code: Code, places: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the feature, place and activation of each active entry of a batch."""
    fired = code.values > 0
    active = (code.indices[fired], code.tokens[fired], code.values[fired])
    features, tokens, values = (t.cpu().numpy() for t in active)
    return features.astype(np.int32), places[tokens].astype(np.int32), values


def _by_feature(parts: list[tuple[np.ndarray, ...]], width: int) -> Firings:
    features, places, values = (np.concatenate(a) for a in zip(*parts, strict=True))
    order = np.lexsort((places, features))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(features, minlength=width))])
    return Firings(offsets, places[order], values[order])
