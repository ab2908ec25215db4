"""Whether a swap changes one attribute and no other (RAVEL, arXiv 2402.17700)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def cause_and_isolation(
    hits: Bool[np.ndarray, "attributes pairs"],
    own: Bool[np.ndarray, "attributes pairs"],
    weights: Float[np.ndarray, "draws pairs"],
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Return how often a swap did what it was to do, by weights of the pairs.

    Args:
        hits: where the features of an attribute were swapped, whether a pair's answer was the
            right one: the source's if the pair is about that attribute, else the base's.
        own: whether a pair is about the attribute.
        weights: of the pairs; not all 0.

    Returns:
        Cause, of an attribute's own pairs, and isolation, of the others: each a mean over the
        attributes that have any such pair.
    """

    def share(of: Bool[np.ndarray, "attributes pairs"]) -> Float[np.ndarray, " draws"]:
        right, all = (weights @ some.T.astype(np.float64) for some in (hits & of, of))
        known = all > 0
        each = np.divide(right, all, out=np.zeros_like(right), where=known)
        return each.sum(1) / np.maximum(known.sum(1), 1)

    return share(own), share(~own)
