"""Groups of like features, and a map of all of them, from who is whose neighbour.

Both see the graph of neighbours, not directions. On a dictionary of 2,048 features, k-means on
decoder rows agreed with itself between seeds at an adjusted Rand index of 0.07, clusters of the
graph of co-activation at 0.7; and features that fire together on other text were in one cluster 5
times as often as by chance, against 25 times.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import eigsh

from monosemy.errors import UserError
from monosemy.interpret.similar import Neighbours

CLUSTERS = 64
_FEWEST = 10
"""Features that a map or clusters need at least."""
_SEEDED = 16
"""Leading eigenvectors of the graph that points of the map start from."""


def cluster_features(
    neighbours: Neighbours, clusters: int = CLUSTERS, *, seed: int = 0
) -> Int[np.ndarray, " width"]:
    """Return the cluster of each feature, 0 the largest; -1 for those without a neighbour.

    Spectral clustering (Ng, Jordan and Weiss 2001) of the graph that joins neighbours, weighted by
    their scores; by co-activation its clusters hold together best. The same seed gives the same
    clusters.

    Raises:
        UserError: scikit-learn is not installed, or there are fewer features with neighbours than
            clusters, or fewer than ten.
    """
    graph, placed = _graph(neighbours, np.ones(len(neighbours.features), dtype=bool))
    _check_enough(len(placed), clusters + 1, f"{clusters} clusters")
    kmeans = extra("sklearn.cluster", "scikit-learn").KMeans(clusters, n_init=4, random_state=seed)
    found = kmeans.fit_predict(_spectrum(graph, clusters, seed))
    order = np.argsort(-np.bincount(found, minlength=clusters), kind="stable")
    labels = np.full(len(neighbours.features), -1)
    labels[placed] = np.argsort(order)[found]
    return labels


def map_features(
    neighbours: Neighbours, fires: Bool[np.ndarray, " width"], *, seed: int = 0
) -> Float[np.ndarray, "width 2"]:
    """Return where each feature lies on a map by UMAP (McInnes et al. 2018); NaN for those not on.

    Near features are neighbours; distances far apart, and the sizes of groups, mean nothing. The
    same seed gives the same map.

    Args:
        neighbours: fifteen or so of each feature.
        fires: features that fire; others, and those without a neighbour that fires, are left out.
        seed: of the start and of the descent.

    Raises:
        UserError: umap-learn is not installed, or there are fewer than ten features to show.
    """
    umap = extra("umap", "umap-learn")
    graph, placed = _graph(neighbours, fires)
    _check_enough(len(placed), _FEWEST, "a map")
    number = np.full(len(fires) + 1, -1)  # the last for the neighbour -1
    number[placed] = np.arange(len(placed))
    itself = np.arange(len(placed))[:, None]
    nearest = np.concatenate([itself, number[neighbours.features[placed]]], axis=1)
    distances = np.concatenate([0.0 * itself, 1 - neighbours.scores[placed]], axis=1)
    count = min(nearest.shape[1], len(placed))
    nearest, distances = nearest[:, :count], np.maximum(distances[:, :count], 0)
    start = _start(graph, seed)
    with _same_threads(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that new points cannot be put on the map
        found = umap.UMAP(
            n_neighbors=count,
            precomputed_knn=(nearest, distances.astype(np.float32)),
            force_approximation_algorithm=True,
            init=start,
            random_state=seed,
            n_jobs=1,
        ).fit_transform(start)
    places = np.full((len(fires), 2), np.nan, dtype=np.float32)
    places[placed] = found
    return places


@contextmanager
def _same_threads() -> Iterator[None]:
    """Undo what numba does as it starts: it sets the number of threads of everybody's OpenMP."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _graph(neighbours: Neighbours, fires: np.ndarray) -> tuple[csr_matrix, np.ndarray]:
    """Join neighbours that fire, both ways; return the graph of those that have one, and which."""
    features, scores = neighbours
    joined = (features >= 0) & (scores > 0) & fires[:, None] & fires[features]
    here = np.nonzero(joined)[0]
    width = len(features)
    graph = csr_matrix((scores[joined].astype(np.float64), (here, features[joined])), (width,) * 2)
    graph = graph.maximum(graph.T)
    placed = np.flatnonzero(np.diff(graph.indptr))
    return graph[placed][:, placed], placed


def _spectrum(graph: csr_matrix, count: int, seed: int) -> np.ndarray:
    """Return the graph's leading eigenvectors, each node's entries brought to unit norm.

    Degrees are raised by their mean (Qin and Rohe 2013): else every few features joined to no
    others would be a leading eigenvector, and all those of one eigenvalue, which Lanczos' method
    does not tell apart.
    """
    degrees = np.asarray(graph.sum(1))[:, 0]
    scale = diags(1 / np.sqrt(degrees + degrees.mean()))
    start = np.random.default_rng(seed).uniform(-1, 1, graph.shape[0])
    _, vectors = eigsh(scale @ graph @ scale, k=count, which="LA", v0=start, tol=1e-6)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _start(graph: csr_matrix, seed: int) -> np.ndarray:
    """Return the two principal components of the spectrum, 10 wide as UMAP likes it."""
    points = _spectrum(graph, min(_SEEDED, graph.shape[0] - 1), seed)
    u, s, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    points = u[:, :2] * s[:2]
    points = 10 * points / np.maximum(np.abs(points).max(), 1e-12)
    jitter = np.random.default_rng(seed).normal(scale=1e-4, size=points.shape)
    return (points + jitter).astype(np.float32)


def _check_enough(found: int, least: int, what: str) -> None:
    if found < max(least, _FEWEST):
        raise UserError(
            f"only {found} features fire and have neighbours, too few for {what}",
            f"it takes {max(least, _FEWEST)}: look at more tokens, or ask for fewer clusters",
        )


def extra(module: str, package: str) -> Any:
    """Return a module of a package that comes with `monosemy[map]`.

    Raises:
        UserError: it is not installed.
    """
    try:
        with warnings.catch_warnings():  # umap-learn regrets that TensorFlow is not there
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this takes {package}, which is not installed",
            'install it with: pip install "monosemy[map]"',
        ) from error
