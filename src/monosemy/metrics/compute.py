"""What share of its training a model would need to have the loss it has with something in place."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def falling_fit(loss: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, "draws n"]:
    """Return the nearest curve, in squared error, that never rises: isotonic regression.

    By the min-max formula: the value at i is the least over starts up to i of the largest mean of
    a stretch from there to an end at or after i (Robertson, Wright & Dykstra 1988, theorem 1.4.4).
    """
    n = loss.shape[1]
    sums = np.concatenate([np.zeros((len(loss), 1)), loss.cumsum(1)], 1)
    start, end = np.arange(n)[:, None], np.arange(n)[None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (sums[:, None, 1:] - sums[:, :-1, None]) / (end - start + 1)
    means = np.where(end >= start, means, -np.inf)
    # From each start the largest mean to any end at or after i; then the least over starts.
    largest = np.maximum.accumulate(means[:, :, ::-1], axis=2)[:, :, ::-1]
    largest = np.where(end >= start, largest, np.inf)
    return np.minimum.accumulate(largest, axis=1)[:, np.arange(n), np.arange(n)]


def compute_share(
    compute: Float[np.ndarray, " n"],
    loss: Float[np.ndarray, "draws n"],
    spliced: Float[np.ndarray, " draws"],
) -> Float[np.ndarray, " draws"]:
    """Return the share of the compute after which the model has the loss of the spliced one.

    Gao et al. 2024 (arXiv 2406.04093, section 4.1): where the curve of a model's loss, made to fall
    throughout (`falling_fit`), passes the loss, interpolated linearly in the logarithm of compute,
    over the last of `compute`. 1 where it is no higher than the last loss; where the first is no
    higher than it, the first share, which is then an upper bound.

    Args:
        compute: of each checkpoint, rising, in any unit.
        loss: of each checkpoint.
        spliced: the loss with something in the activations' place.
    """
    curve, log = falling_fit(loss), np.log(compute / compute[-1])
    after = (curve > spliced[:, None]).sum(1).clip(0, len(compute) - 1)
    before = (after - 1).clip(0)
    rows = np.arange(len(curve))
    above, below = curve[rows, before], curve[rows, after]
    with np.errstate(invalid="ignore", divide="ignore"):
        way = np.where(above > below, (above - spliced) / (above - below), 1.0)
    share = np.exp(log[before] + way.clip(0, 1) * (log[after] - log[before]))
    # The fit may lie below the last loss itself, where the one before was lower.
    return np.where(spliced <= loss[:, -1], 1.0, share)
