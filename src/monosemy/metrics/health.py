"""How a dictionary's features are used and laid out: how often they fire, how near they lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import normalize

from monosemy.metrics.groups import GroupSums

BINS = 1000
"""Of the cosines from -1 to 1: their quantiles are exact to half a bin, 0.001."""
_ROWS = 512
"""Directions compared with all others at a time, to bound memory; it changes no figure."""


class Firing:
    """Count, for each group of tokens, on how many of them each feature fires.

    Groups (in practice: documents) are kept apart, so that an interval can be had by drawing them
    with replacement. A feature fires on a token where its value is above 0.
    """

    def __init__(self, width: int) -> None:
        """Start with nothing seen."""
        self.width = width
        self.sums: Float[Tensor, " width"] = torch.zeros(width, dtype=torch.float64)
        """Sum of each feature's activations."""
        self._counts = csr_matrix((0, width))
        self._totals = GroupSums(3)  # tokens, entries, their sum
        self._l0: list[Tensor] = []
        self._groups: list[Tensor] = []

    def update(
        self,
        values: Float[Tensor, " n"],
        indices: Int[Tensor, " n"],
        tokens: Int[Tensor, " n"],
        groups: Int[Tensor, " tokens"],
    ) -> None:
        """Add tokens: their entries, the feature and the token of each, and the tokens' groups."""
        fired = values > 0
        values, indices = values[fired].detach().double().cpu(), indices[fired].cpu()
        tokens, groups = tokens[fired].cpu(), groups.cpu()
        self.sums += torch.bincount(indices, values, minlength=self.width)
        l0 = torch.bincount(tokens, minlength=len(groups))
        strength = torch.bincount(tokens, values, minlength=len(groups))
        rows = torch.stack([torch.ones_like(strength), l0.double(), strength], 1)
        self._totals.add(rows.numpy(), groups.numpy())
        self._l0.append(l0)
        self._groups.append(groups)
        n_groups = max(self._counts.shape[0], int(groups.max()) + 1 if len(groups) else 0)
        places = groups[tokens].numpy(), indices.numpy()
        self._counts.resize(n_groups, self.width)
        self._counts += csr_matrix((np.ones(len(values)), places), shape=(n_groups, self.width))

    @property
    def counts(self) -> Float[np.ndarray, " width"]:
        """Tokens on which each feature fires."""
        return np.asarray(self._counts.sum(0))[0]

    @property
    def n_tokens(self) -> int:
        """Tokens seen."""
        return sum(map(len, self._l0))

    def density(self, weights: np.ndarray) -> Float[np.ndarray, "draws width"]:
        """Return the share of tokens each feature fires on, for weights [draws, groups]."""
        counts = (self._counts.T @ weights[:, : self._counts.shape[0]].T).T
        return counts / self._totals.weighted(weights)[:, :1]

    def mean_active(self, weights: np.ndarray) -> Float[np.ndarray, " draws"]:
        """Return the mean activation of the entries above 0; NaN where there are none."""
        _, entries, strength = self._totals.weighted(weights).T
        with np.errstate(invalid="ignore"):
            return strength / entries

    def l0_quantile(self, weights: np.ndarray, share: float) -> Float[np.ndarray, " draws"]:
        """Return the L0 that a share of tokens does not exceed."""
        l0, groups = torch.cat(self._l0), torch.cat(self._groups)
        most = int(l0.max()) + 1
        table = torch.bincount(groups * most + l0, minlength=self._counts.shape[0] * most)
        tokens = table.reshape(-1, most).numpy().astype(float)
        return weighted_quantile(np.arange(most), weights[:, : len(tokens)] @ tokens, share)


class Cosines(NamedTuple):
    """Directions compared with all others."""

    nearest: Float[Tensor, " rows"]
    """The largest cosine of each with another."""
    opposite: Float[Tensor, " rows"]
    """The smallest."""
    partner: Int[Tensor, " rows"]
    """Which is the nearest."""
    mean: Float[Tensor, " rows"]
    """Over the others."""
    histogram: Int[Tensor, "rows bins"]
    """Cosines with others in `BINS` equal bins from -1 to 1."""


def direction_cosines(
    directions: Float[Tensor, "n d"], rows: Int[Tensor, " rows"] | None = None
) -> Cosines:
    """Compare directions with all others, whatever their length.

    Cosines are signed: an opposite direction is another phenomenon than a near one. They are
    computed in fp32. With itself a direction is not compared.

    Args:
        directions: two at least.
        rows: those compared with all; default all.

    Raises:
        ValueError: fewer than two directions.
    """
    if len(directions) < 2:
        raise ValueError(f"{len(directions)} directions have no pair")
    unit = normalize(directions.detach().float().cpu(), dim=1)
    rows = torch.arange(len(unit)) if rows is None else rows
    parts = [_compare(unit, some) for some in rows.split(_ROWS)]
    return Cosines(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _compare(unit: Tensor, rows: Tensor) -> Cosines:
    cosines = unit[rows] @ unit.T
    here = torch.arange(len(rows))
    bins = ((cosines + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
    itself = bins[here, rows]
    bins += BINS * here[:, None]
    histogram = torch.bincount(bins.flatten(), minlength=BINS * len(rows)).reshape(-1, BINS)
    histogram[here, itself] -= 1
    mean = (cosines.sum(1) - cosines[here, rows]) / (len(unit) - 1)
    cosines[here, rows] = torch.inf
    opposite = cosines.amin(1)
    cosines[here, rows] = -torch.inf
    nearest = cosines.max(1)
    return Cosines(nearest.values, opposite, nearest.indices, mean, histogram)


def gini(values: Float[np.ndarray, "rows n"]) -> Float[np.ndarray, " rows"]:
    """Return the Gini coefficient of non-negative values, row by row.

    sum_i (2 i - n - 1) x_(i) / (n sum x), x sorted. 0 where all are the same, 1 - 1/n where one
    has everything; [1, 2, 3, 4]: 0.25. NaN where all are 0.
    """
    n = values.shape[-1]
    ranks = 2 * np.arange(1, n + 1) - n - 1
    with np.errstate(invalid="ignore"):
        return (np.sort(values, -1) @ ranks) / (n * values.sum(-1))


def variance_explained(
    values: Float[Tensor, "tokens n"], groups: Int[Tensor, " tokens"]
) -> Float[Tensor, " n"]:
    """Return the share of each column's variance that groups of tokens explain.

    The correlation ratio, less what as many groups explain by chance (epsilon squared, Kelley
    1935): 1 - (within / (N - G)) / (total / (N - 1)) for N tokens in G groups. 1 where a value is
    decided by its group, about 0, or below, where it is independent of it. NaN for a column that
    does not vary, or where each token is a group of its own.
    """
    values = values.double()
    _, inverse, sizes = groups.unique(return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(sizes), values.shape[1]).index_add_(0, inverse, values)
    within = (values - (sums / sizes[:, None])[inverse]).square().sum(0)
    total = (values - values.mean(0)).square().sum(0)
    n = len(values)
    return 1 - (within / (n - len(sizes))) / (total / (n - 1))


def weighted_quantile(
    values: Real[np.ndarray, " n"], weights: Real[np.ndarray, "draws n"], share: float
) -> Float[np.ndarray, " draws"]:
    """Return the least of the values that a share of the weight does not exceed, draw by draw."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1)
    # A share of the total that rounding puts a hair above the sum so far is that sum.
    enough = reached >= share * reached[:, -1:] * (1 - 1e-12)
    return np.asarray(values, dtype=float)[order[enough.argmax(1)]]
