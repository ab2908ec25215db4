"""How right a judge's answers are, with weights for the bootstrap."""

from __future__ import annotations

import numpy as np


def yes_no(truth: np.ndarray, said: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return how right answers of yes and no are, as figures [draws].

    - `recall`: share of the true that are said to be; `specificity`: of the false that are said
      not to be;
    - `balanced accuracy`: the mean of the two, .5 for a judge who does not look;
    - `f1` = 2 hits / (true + said to be).

    NaN where there is nothing to divide by.

    Args:
        truth: [n] bool.
        said: [n] bool.
        weights: [draws, n], how often each answer counts.
    """
    recall = _share(weights, said, truth)
    specificity = _share(weights, ~said, ~truth)
    return {
        "balanced accuracy": (recall + specificity) / 2,
        "recall": recall,
        "specificity": specificity,
        "f1": _divide(2 * weights @ (truth & said), weights @ truth + weights @ said),
    }


def precision_at(rate: float, figures: dict[str, np.ndarray]) -> np.ndarray:
    """Return the precision [draws] that recall and specificity give where `rate` are true (Bayes).

    A test of as many true as false flatters a judge of what is rare.
    """
    hits = rate * figures["recall"]
    return _divide(hits, hits + (1 - rate) * (1 - figures["specificity"]))


def accuracy(truth: np.ndarray, said: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the share of answers [n] that are right, for weights [draws, n]: [draws]."""
    return _share(weights, truth == said, np.ones(len(truth), bool))


def correlation(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation over the concatenated tokens of several texts: [draws].

    0 where either is constant: a prediction that never changes says nothing.

    Args:
        sums: [texts, 6] from `moments`.
        weights: [draws, texts], how often each text counts.
    """
    n, x, y, xx, yy, xy = (weights @ sums).T
    spread = (n * xx - x * x) * (n * yy - y * y)
    varies = spread > 1e-12 * (n * xx) * (n * yy)
    found = np.zeros(len(weights))
    np.divide(n * xy - x * y, np.sqrt(np.where(varies, spread, 1)), out=found, where=varies)
    return found


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return n and the sums of x, y, xx, yy and xy over a text's tokens: [6]."""
    return np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])


def _share(weights: np.ndarray, hit: np.ndarray, of: np.ndarray) -> np.ndarray:
    return _divide(weights @ (hit & of), weights @ of)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
