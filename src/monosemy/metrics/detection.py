"""How well a rule says where a feature fires."""

from __future__ import annotations

import numpy as np


def detection(
    hits: np.ndarray,
    predicted: np.ndarray,
    fired: np.ndarray,
    tokens: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return how well predictions agree with firings, from counts of tokens; any shape.

    - `recall` = hits / fired, `precision` = hits / predicted, `f1` = 2 hits / (fired + predicted),
      their harmonic mean, 0 where nothing is ever hit;
    - `density` = fired / tokens, the precision of predictions made at random;
    - `lift` = precision / density.

    NaN where the denominator is 0.

    Args:
        hits: tokens on which the rule predicts that the feature fires, and it does.
        predicted: tokens on which the rule predicts that it fires.
        fired: tokens on which it fires.
        tokens: all tokens.
    """
    precision, density = _share(hits, predicted), _share(fired, tokens)
    return {
        "recall": _share(hits, fired),
        "precision": precision,
        "f1": _share(2 * hits, fired + predicted),
        "density": density,
        "lift": _share(precision, density),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    none = np.full(np.broadcast(part, whole).shape, np.nan)
    return np.divide(part, whole, out=none, where=whole > 0)
