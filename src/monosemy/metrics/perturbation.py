"""What ablating a few features does to linear probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

SMALLEST_GAP = 0.001
"""Between the accuracy of the biased probe and of the oracle, below which there is no score."""


def ablated_logits(
    logits: Float[np.ndarray, "n probes"],
    z: Float[np.ndarray, "n ranked"],
    along: Float[np.ndarray, "ranked probes"],
    counts: Sequence[int],
) -> Float[np.ndarray, "counts n probes"]:
    """Return probes' logits with the first features of a ranking ablated, the error kept.

    Ablation takes z_i d_i away, which is linear, as pooling over tokens is and as probes are: the
    logit of the pooled activations loses z_i <d_i, w>, z_i pooled likewise.

    Args:
        logits: of the activations as they are.
        z: pooled activations of the features ranked, first the first to go.
        along: the product of each one's direction with each probe's weights.
        counts: how many to ablate, rising; more than there are is all.
    """
    lost, before, found = np.zeros_like(logits), 0, []
    for count in counts:
        lost = lost + z[:, before:count] @ along[before:count]
        found.append(logits - lost)
        before = count
    return np.stack(found)


def ranked(effects: Float[np.ndarray, " width"], most: int) -> Int[np.ndarray, " ranked"]:
    """Return the features with the largest effects, the largest first; none without any effect."""
    order = np.argsort(-effects, kind="stable")[:most]
    return order[effects[order] > 0]


def scr_score(base: np.ndarray, ablated: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """Return how much of the accuracy that a spurious cue cost comes back (SCR, SHIFT score).

    Karvonen et al. 2024 (arXiv 2411.18895): (ablated - base) / (oracle - base); 0 where the gap is
    below 0.001. It may be negative, or above 1.

    Args:
        base: accuracy of the probe that was trained where target and cue coincide.
        ablated: of the same probe with features of the cue ablated.
        oracle: of a probe trained where they do not.
    """
    gap = oracle - base
    wide = gap >= SMALLEST_GAP
    return np.where(wide, (ablated - base) / np.where(wide, gap, 1), 0.0)


def probe_drops(
    base: Float[np.ndarray, "... m"], ablated: Float[np.ndarray, "... m m"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the accuracy that ablation costs a class's own probe, and that it costs the others.

    Means over the m >= 2 classes. Their difference is TPP (Karvonen et al. 2024, arXiv
    2411.18895).

    Args:
        base: accuracy of each class's probe.
        ablated: the class whose features were ablated, and then the probe.

    Returns:
        Two numbers for each of whatever comes before the classes.
    """
    drop = base[..., None, :] - ablated
    own = np.diagonal(drop, axis1=-2, axis2=-1)
    others = (drop.sum(-1) - own) / (drop.shape[-1] - 1)
    return own.mean(-1), others.mean(-1)
