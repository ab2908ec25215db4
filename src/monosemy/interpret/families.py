"""Families: which features of a wide dictionary a feature of a narrow one has split into.

A parent always has a nearest child, so nearness is held against chance: directions drawn like the
children's own, or the parents' activations moved to other tokens. A child that fires only where
its parent does is contained in it (1.0); where the dictionary lets a child fire instead of its
parent (absorption), directions are near and containment is low.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import normalize

from monosemy.interpret.firings import Firings
from monosemy.interpret.similar import ROWS, SAMPLE, activations_on, correlation_of, draw_tokens

FIRINGS = 200
"""Tokens a child must fire on for its activations to name a parent."""
LEVEL = 0.01
"""Share of children that would have a parent by chance."""
_SHIFTS = 5


@dataclass(frozen=True, slots=True)
class Parents:
    """The feature of a narrow dictionary that is nearest to each of a wide one."""

    parent: Int[np.ndarray, " wide"]
    """Its number; -1 where none is nearer than chance would have it."""
    score: Float[np.ndarray, " wide"]
    """How near the nearest is, a cosine or a correlation; NaN for a child that fires too rarely."""
    threshold: float
    """Score that `LEVEL` of the children reach by chance; a parent's is higher."""

    @property
    def families(self) -> dict[int, list[int]]:
        """Parents with several children, and these."""
        children: dict[int, list[int]] = {}
        for child in np.flatnonzero(self.parent >= 0).tolist():
            children.setdefault(int(self.parent[child]), []).append(child)
        return {parent: c for parent, c in sorted(children.items()) if len(c) > 1}


@dataclass(frozen=True, slots=True)
class FiringParents(Parents):
    """Parents by activation, and how far one fires where the other does."""

    contained: Float[np.ndarray, " wide"]
    """P(parent fires | child fires); NaN without a parent. Near 1: the child is a part of it."""
    covered: Float[np.ndarray, " wide"]
    """P(child fires | parent fires); NaN without a parent. Near 1: they are the same feature."""


def parents_by_direction(
    narrow: Float[Tensor, "narrow d"], wide: Float[Tensor, "wide d"], *, seed: int = 0
) -> Parents:
    """Return the parents whose directions have the largest cosine with the children's.

    Chance: as many directions drawn at random with the children's own second moments.
    """
    narrow, wide = (normalize(rows.detach().float().cpu(), dim=1) for rows in (narrow, wide))
    scores, parent = _best(len(wide), lambda rows: wide[rows] @ narrow.T)
    values, axes = torch.linalg.eigh(wide.T @ wide)
    spread = axes * values.clamp_min(0).sqrt()
    generator = torch.Generator().manual_seed(seed)
    drawn = normalize(torch.randn(wide.shape, generator=generator) @ spread.T, dim=1)
    chance, _ = _best(len(wide), lambda rows: drawn[rows] @ narrow.T)
    threshold = float(np.quantile(chance, 1 - LEVEL))
    return Parents(np.where(scores > threshold, parent, -1), scores, threshold)


def parents_by_activation(
    narrow: Firings,
    wide: Firings,
    counted: Integer[np.ndarray, " tokens"],
    *,
    tokens: int = SAMPLE,
    seed: int = 0,
) -> FiringParents:
    """Return the parents whose activations correlate most with the children's, on the same tokens.

    Chance: the parents' activations moved along the text, all by the same number of tokens, which
    leaves how often they fire and in what runs. Children that fire on fewer than `FIRINGS` tokens
    have no parent.

    Args:
        narrow: who fires where, of the parents.
        wide: of the children.
        counted: places of all counted tokens, the same for both, ascending.
        tokens: to draw, at most.
        seed: of the draw and of the moves.
    """
    places = draw_tokens(counted, tokens, seed)
    parents, children = activations_on(narrow, places), activations_on(wide, places)
    width, n = children.shape
    often = np.diff(children.indptr) >= FIRINGS
    scores, parent = _best(width, correlation_of(children, parents))
    rng = np.random.default_rng(seed)
    shifts = rng.integers(n // 10, max(n - n // 10, n // 10 + 1), _SHIFTS).tolist()
    chance = [_best(width, correlation_of(children, _moved(parents, by)))[0] for by in shifts]
    by_chance = np.concatenate([found[often] for found in chance])
    threshold = float(np.quantile(by_chance, 1 - LEVEL)) if len(by_chance) else 1.0
    parent = np.where(often & (scores > threshold), parent, -1)
    fires, parents_fire = (matrix > 0 for matrix in (children, parents[parent]))
    both = np.asarray(fires.multiply(parents_fire).sum(1))[:, 0].astype(np.float64)
    missing = np.where(parent < 0, np.nan, 1.0)
    return FiringParents(
        parent,
        np.where(often, scores, np.nan).astype(np.float32),
        threshold,
        contained=missing * both / np.maximum(np.diff(children.indptr), 1),
        covered=missing * both / np.maximum(np.diff(parents.indptr)[parent], 1),
    )


def _best(width: int, compare: Callable[[slice], Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest score of each child with any parent, and which that is."""
    parts = [compare(slice(first, first + ROWS)).max(1) for first in range(0, width, ROWS)]
    scores, parent = (torch.cat(columns).numpy() for columns in zip(*parts, strict=True))
    return scores, parent


def _moved(rows: csr_matrix, by: int) -> csr_matrix:
    """Move each row's entries by so many columns, round the end."""
    columns = (rows.indices + by) % rows.shape[1]
    return csr_matrix((rows.data, columns, rows.indptr), shape=rows.shape)
