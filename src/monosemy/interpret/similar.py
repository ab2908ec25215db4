"""Which features are alike: in what they write, in what they read, in where they fire.

Neighbours are exact, computed in blocks, and never the feature itself, though another may be its
equal. Of near ones it pays to look at the densities: alike, they are redundant; unlike, the denser
one is often the other's parent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from scipy.sparse import csr_matrix, diags
from torch import Tensor
from torch.nn.functional import normalize

from monosemy.interpret.firings import Firings

SAMPLE = 262_144
"""Tokens that co-activation is counted on; of a larger corpus so many are drawn."""
ROWS = 256
"""Features compared with all others at a time: 64 MB for each table of 65,536 features."""


class Neighbours(NamedTuple):
    """The nearest other features of each feature, nearest first."""

    features: Int[np.ndarray, "width count"]
    """Their numbers, int32; -1 where there are fewer."""
    scores: Float[np.ndarray, "width count"]
    """How near, fp32; 0 where there are fewer."""


class CoActivation(NamedTuple):
    """Neighbours by where features fire."""

    jaccard: Neighbours
    """Tokens on which both fire, as a share of those on which either does."""
    correlation: Neighbours
    """Of activations, over all tokens, those without either included (Pearson)."""
    n_tokens: int
    """Tokens it was counted on."""


def nearest_by_direction(directions: Float[Tensor, "width d"], count: int = 10) -> Neighbours:
    """Return the features whose directions have the largest cosine, opposite ones being far.

    Rows of the decoder compare what features do, of the encoder what they detect.
    """
    unit = normalize(directions.detach().float().cpu(), dim=1)
    return _nearest(len(unit), count, lambda rows: unit[rows] @ unit.T, lowest=-torch.inf)


def nearest_by_activation(
    firings: Firings,
    counted: Integer[np.ndarray, " tokens"],
    count: int = 10,
    *,
    tokens: int = SAMPLE,
    seed: int = 0,
) -> CoActivation:
    """Return the features that fire on the same tokens, by Jaccard index and by correlation.

    Only features that fire together at least once are neighbours. Time grows with tokens times the
    square of L0; a corpus larger than `tokens` is sampled, and figures are exact on the sample.

    Args:
        firings: who fires where.
        counted: places of all counted tokens, ascending.
        count: neighbours.
        tokens: to draw, at most.
        seed: of the draw.
    """
    values = activations_on(firings, draw_tokens(counted, tokens, seed))
    correlate = correlation_of(values, values)
    width, n = values.shape
    return CoActivation(
        _nearest_by_sets(values, count), _nearest(width, count, correlate, lowest=0), n
    )


def nearest_by_exemplars(
    firings: Firings, count: int = 10, *, exemplars: int = 20, window: int = 32
) -> Neighbours:
    """Return the features whose strongest contexts are the same, by their Jaccard index.

    A context is one of the windows of so many places that text divides into; the strongest are
    those with the largest activations. Features that answer the same text at different tokens are
    neighbours too.
    """
    contexts = [
        _strongest_windows(*firings.of(feature), exemplars, window)
        for feature in range(len(firings.offsets) - 1)
    ]
    offsets = np.cumsum([0, *map(len, contexts)])
    windows = np.unique(np.concatenate(contexts), return_inverse=True)[1]
    ones = np.ones(len(windows), dtype=np.float32)
    shape = len(contexts), int(windows.max(initial=-1)) + 1
    return _nearest_by_sets(csr_matrix((ones, windows, offsets), shape=shape), count)


def draw_tokens(
    counted: Integer[np.ndarray, " tokens"], tokens: int, seed: int
) -> Integer[np.ndarray, " some"]:
    """Return so many of the places at random, ascending; all where there are no more."""
    if len(counted) <= tokens:
        return counted
    return np.sort(np.random.default_rng(seed).choice(counted, tokens, replace=False))


def activations_on(firings: Firings, places: Integer[np.ndarray, " tokens"]) -> csr_matrix:
    """Return the activations [width, tokens] on the places given, which ascend."""
    width = len(firings.offsets) - 1
    number = np.full(int(places.max(initial=-1)) + 2, -1, dtype=np.int32)
    number[places] = np.arange(len(places), dtype=np.int32)
    columns, values, counts = [], [], []
    for feature in range(width):
        where, activations = firings.of(feature)
        column = number[np.minimum(where, len(number) - 1)]
        there = (column >= 0) & (activations > 0)
        columns.append(column[there])
        values.append(activations[there])
        counts.append(int(there.sum()))
    offsets = np.cumsum([0, *counts])
    arrays = np.concatenate(values).astype(np.float32), np.concatenate(columns), offsets
    return csr_matrix(arrays, shape=(width, len(places)))


def correlation_of(a: csr_matrix, b: csr_matrix) -> Callable[[slice], Tensor]:
    """Return what correlates some rows of a with all rows of b; 0 for a row that does not vary."""
    (scaled, shift), (others, other_shift) = _standardise(a), _standardise(b)
    by_column = others.T.tocsr()

    def correlate(rows: slice) -> Tensor:
        together = torch.from_numpy((scaled[rows] @ by_column).toarray())
        return together.sub_(shift[rows, None] * other_shift)

    return correlate


def _standardise(rows: csr_matrix) -> tuple[csr_matrix, Tensor]:
    """Scale rows so that, less their means, they have norm 1; and sums / sqrt(n) after that."""
    sums = np.asarray(rows.sum(1, dtype=np.float64))[:, 0]
    squares = np.asarray(rows.multiply(rows).sum(1, dtype=np.float64))[:, 0]
    n = max(rows.shape[1], 1)
    left = squares - sums**2 / n
    varies = left > 1e-6 * squares  # the rest is rounding
    scale = np.divide(1, np.sqrt(np.maximum(left, 0)), out=np.zeros(len(sums)), where=varies)
    scaled = csr_matrix(diags(scale) @ rows, dtype=np.float32)
    return scaled, torch.from_numpy(sums * scale / np.sqrt(n)).float()


def _strongest_windows(
    places: np.ndarray, values: np.ndarray, exemplars: int, window: int
) -> np.ndarray:
    order = np.argsort(-values, kind="stable")
    windows = places[order] // window
    first = np.sort(np.unique(windows, return_index=True)[1])
    return windows[first[:exemplars]]


def _nearest_by_sets(members: csr_matrix, count: int) -> Neighbours:
    """Compare rows as the sets of the columns in which they are not zero."""
    sets = csr_matrix(
        (np.ones(members.nnz, dtype=np.float32), members.indices, members.indptr), members.shape
    )
    sizes = torch.from_numpy(np.diff(sets.indptr)).float()
    by_column = sets.T.tocsr()

    def jaccard(rows: slice) -> Tensor:
        both = torch.from_numpy((sets[rows] @ by_column).toarray())
        return both / (sizes[rows, None] + sizes - both).clamp_min(1)

    return _nearest(members.shape[0], count, jaccard, lowest=0)


def _nearest(
    width: int, count: int, compare: Callable[[slice], Tensor], lowest: float
) -> Neighbours:
    """Find the highest scores above `lowest`, of blocks of rows [rows, width]."""
    count = min(count, width)
    parts = []
    for first in range(0, width, ROWS):
        scores = compare(slice(first, first + ROWS))
        scores.diagonal(first).fill_(-torch.inf)
        top = scores.topk(count, dim=1)
        found = top.values > lowest
        parts.append((top.indices.where(found, -1).int(), top.values.where(found, 0)))
    return Neighbours(*(torch.cat(columns).numpy() for columns in zip(*parts, strict=True)))
