"""The shape of a distribution: how far a few entries stand out of the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Moments(NamedTuple):
    """Row by row, of all entries: the biased estimators, which divide by their number."""

    mean: Float[Tensor, " rows"]
    std: Float[Tensor, " rows"]
    skewness: Float[Tensor, " rows"]
    """Third moment about the mean, in standard deviations; 0 for a normal distribution."""
    kurtosis: Float[Tensor, " rows"]
    """Fourth, less the 3 of a normal distribution (excess, Fisher's)."""


def moments(values: Float[Tensor, "rows n"]) -> Moments:
    """Return mean, standard deviation, skewness and excess kurtosis of each row, in fp32.

    One entry of 1 among 999 zeros: skewness 31.5753, excess kurtosis 995.001. NaN for the last two
    where all entries of a row are the same.
    """
    values, n = values.float(), values.shape[1]
    mean = values.mean(1)
    standard = values - mean[:, None]
    std = torch.linalg.vector_norm(standard, dim=1) / n**0.5
    # Divided before the powers are taken: a fourth power of small numbers is none in fp32.
    standard /= std[:, None]
    square = standard.square()
    skewness = torch.einsum("rn,rn->r", square, standard) / n
    return Moments(mean, std, skewness, torch.einsum("rn,rn->r", square, square) / n - 3)
