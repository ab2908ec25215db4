"""Sums of per-token rows, kept for each group of tokens, and bootstrap weights over groups."""

from __future__ import annotations

import numpy as np


class GroupSums:
    """Running sums of rows in double precision, one per group."""

    def __init__(self, columns: int) -> None:
        self._sums = np.zeros((0, columns))

    def add(self, rows: np.ndarray, groups: np.ndarray | None = None) -> None:
        """Add rows [n, columns] to their groups [n]; without groups, all to group 0."""
        if groups is None:
            groups = np.zeros(len(rows), dtype=np.int64)
        if not len(rows):
            return
        names, inverse = np.unique(groups, return_inverse=True)
        missing = int(names[-1]) + 1 - len(self._sums)
        if missing > 0:
            self._sums = np.pad(self._sums, ((0, missing), (0, 0)))
        order = np.argsort(inverse, kind="stable")
        starts = np.searchsorted(inverse[order], np.arange(len(names)))
        self._sums[names] += np.add.reduceat(rows[order], starts, axis=0)

    def each(self) -> np.ndarray:
        """Return the sums of each group: [groups, columns]."""
        return self._sums

    def total(self) -> np.ndarray:
        """Return the sum over all groups: [1, columns]."""
        return self._sums.sum(0, keepdims=True)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Return weighted sums over groups: weights [draws, groups] -> [draws, columns]."""
        return weights[:, : len(self._sums)] @ self._sums


class Breakdown:
    """Running sums of rows in double precision, for each kind of token and each group."""

    def __init__(self, kinds: int, columns: int) -> None:
        self._kinds, self._columns = kinds, columns
        self._sums = GroupSums(columns)

    def add(self, rows: np.ndarray, kinds: np.ndarray, groups: np.ndarray) -> None:
        """Add rows [n, columns], each of a kind and a group [n]."""
        self._sums.add(rows, groups * self._kinds + kinds)

    def total(self) -> np.ndarray:
        """Return the sums over all groups: [1, kinds, columns]."""
        return self._by_group().sum(0, keepdims=True)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Return weighted sums over groups: weights [draws, groups] -> [draws, kinds, columns]."""
        sums = self._by_group()
        return np.einsum("dg,gkc->dkc", weights[:, : len(sums)], sums, optimize=True)

    def _by_group(self) -> np.ndarray:
        sums = self._sums.each()
        missing = -len(sums) % self._kinds
        whole = np.pad(sums, ((0, missing), (0, 0)))
        return whole.reshape(-1, self._kinds, self._columns)


def bootstrap_weights(n_groups: int, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Return how often each group is drawn in each of `draws` bootstrap samples.

    Figures computed with the same weights are paired: their difference has an interval too.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)
    return counts.astype(np.float64)


def weighted_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean of each row, NaN left out: [draws, n], [draws, n] -> [draws]."""
    known = np.isfinite(values)
    return np.where(known, values * weights, 0).sum(1) / (known * weights).sum(1)
