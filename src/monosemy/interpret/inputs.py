"""Kinds of text, by the features they activate: k-means of documents or rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer
from scipy.sparse import csc_matrix, csr_matrix, diags

from monosemy.errors import UserError
from monosemy.interpret.firings import Firings
from monosemy.interpret.map import extra

_TOP = 10
_NEAREST = 5


@dataclass(frozen=True, slots=True)
class InputCluster:
    """Inputs that activate the same features."""

    size: int
    features: list[tuple[int, float]]
    """Features that set it apart and their lift: mean activation in its inputs over that in all;
    of those that fire in half of its inputs, the highest first."""
    nearest: list[int]
    """Numbers of the inputs nearest to its centre."""


def cluster_inputs(
    firings: Firings,
    inputs: Integer[np.ndarray, " places"],
    clusters: int = 20,
    *,
    seed: int = 0,
) -> tuple[Int[np.ndarray, " inputs"], list[InputCluster]]:
    """Cluster inputs by the mean activation of every feature over their tokens.

    Each feature is divided by its root mean square over inputs, so that none counts for more than
    another, and each input is brought to unit norm. The same seed gives the same clusters.

    Args:
        firings: who fires where.
        inputs: number of the input that each place belongs to, a document or a row; -1: to none.
        clusters: how many, two at least.
        seed: of the start.

    Returns:
        Cluster of each input, -1 where no feature fires; the clusters, largest first.

    Raises:
        UserError: scikit-learn is not installed, or there are not more inputs than clusters.
    """
    sums = _sums(firings, inputs)
    tokens = np.bincount(inputs[inputs >= 0], minlength=sums.shape[0])
    means = csr_matrix(diags(1 / np.maximum(tokens, 1)) @ sums)
    some = np.flatnonzero(np.diff(means.indptr))
    if not 2 <= clusters < len(some):
        raise UserError(
            f"{clusters} clusters of {len(some)} inputs on which features fire",
            f"ask for 2 to {max(len(some) - 1, 2)}, or give rows instead of documents",
        )
    means = means[some]
    weighted = _to_unit(means @ diags(1 / _root_mean_square(means)))
    kmeans = extra("sklearn.cluster", "scikit-learn").MiniBatchKMeans(
        clusters, n_init=4, random_state=seed
    )
    distances = kmeans.fit_transform(weighted)
    found = distances.argmin(1)
    order = np.argsort(-np.bincount(found, minlength=clusters), kind="stable")
    labels = np.full(sums.shape[0], -1)
    labels[some] = np.argsort(order)[found]
    overall = np.asarray(means.mean(0))[0]
    described = []
    for cluster in order:
        mine = np.flatnonzero(found == cluster)
        if len(mine):
            near = some[mine[np.argsort(distances[mine, cluster], kind="stable")[:_NEAREST]]]
            described.append(
                InputCluster(len(mine), _features(means[mine], overall), near.tolist())
            )
    return labels, described


def _features(means: csr_matrix, overall: np.ndarray) -> list[tuple[int, float]]:
    fires = np.asarray((means > 0).mean(0))[0] >= 0.5
    here = np.asarray(means.mean(0))[0]
    lift = np.divide(here, overall, out=np.zeros(len(here)), where=fires & (overall > 0))
    top = np.argsort(-lift, kind="stable")[:_TOP]
    return [(int(feature), float(lift[feature])) for feature in top if lift[feature] > 1]


def _sums(firings: Firings, inputs: np.ndarray) -> csr_matrix:
    """Return the sum of each feature's activations in each input, [inputs, width]."""
    sums, owners, counts = [], [], []
    for feature in range(len(firings.offsets) - 1):
        places, values = firings.of(feature)
        owner = inputs[places]
        there = owner >= 0
        owner, values = owner[there], values[there].astype(np.float64)
        # Tokens of an input follow each other: one entry for each stretch.
        begins = np.flatnonzero(np.diff(owner, prepend=-1))
        sums.append(np.add.reduceat(values, begins) if len(begins) else values)
        owners.append(owner[begins])
        counts.append(len(begins))
    shape = int(inputs.max(initial=-1)) + 1, len(counts)
    arrays = np.concatenate(sums), np.concatenate(owners), np.cumsum([0, *counts])
    by_feature = csc_matrix(arrays, shape=shape)
    by_feature.sum_duplicates()
    return by_feature.tocsr()


def _root_mean_square(rows: csr_matrix) -> np.ndarray:
    square = np.asarray(rows.multiply(rows).mean(0))[0]
    return np.sqrt(np.where(square > 0, square, 1))


def _to_unit(rows: csr_matrix) -> csr_matrix:
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(1))[:, 0])
    return csr_matrix(diags(1 / norms) @ rows)
