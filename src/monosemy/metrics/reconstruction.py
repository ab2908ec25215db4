"""How well activations are reconstructed: sums that stream exactly, however the data is cut.

Every figure is a function of sums over tokens, and the sums are kept for each group of tokens
(in practice: document), so that an interval can be had by drawing groups with replacement.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from monosemy.metrics.groups import GroupSums

FORMULAS = "1"
"""Version of the definitions in this package; figures of different versions do not compare."""

_COLUMNS = 13
"""Sums of a token that figures are made of."""
_CHUNK = 2**18
"""Numbers worked on at once: few enough to stay in a processor's cache."""


class Reconstruction:
    """Accumulate reconstruction figures over batches of activations.

    Figures (`compute`):

    - `fvu`: fraction of variance unexplained, token-pooled: sum ||x - xhat||^2 over
      sum ||x - xbar||^2, xbar the mean of all x seen. Predicting xbar gives 1, x itself 0.
    - `token_fvu`: mean over tokens of ||x - xhat||^2 / ||x - mean||^2, where `mean` is given.
      Another figure than `fvu`: tokens near the mean dominate it.
    - `mse`: mean over tokens and dimensions of (x - xhat)^2.
    - `cosine`: mean over tokens of cos(x, xhat); 0 where either is zero.
    - `l0`: mean number of features that fire on a token.
    - `l2_ratio`: mean over tokens of ||xhat|| / ||x||; below 1 where reconstructions shrink. A
      token of norm 0 counts as 0.
    - `relative_bias`: sum ||xhat||^2 over sum <x, xhat>: the number that xhat must be divided by to
      be nearest to x (Rajamanoharan et al. 2024, arXiv 2404.16014, equation 10). Below 1 where
      reconstructions shrink; tokens of large norm dominate it.
    - `l2_ratio_centred`, `relative_bias_centred`: the same of x and xhat less `mean`, which both
      share and which hides shrinkage.
    """

    def __init__(self, mean: Float[Tensor, " d"]) -> None:
        """Start with nothing seen; `mean` is the centre that centred figures measure from."""
        self._mean = mean.detach().double().cpu()
        self._d = mean.shape[0]
        self._sums = GroupSums(_COLUMNS)
        self._offsets = GroupSums(self._d)

    def update(
        self,
        x: Float[Tensor, "*batch d"],
        reconstruction: Float[Tensor, "*batch d"],
        l0: Real[Tensor, "*batch"] | None = None,
        groups: Int[Tensor, "*batch"] | None = None,
    ) -> None:
        """Add tokens: any leading shape, `groups` the non-negative group number of each."""
        x, xhat = _rows(x), _rows(reconstruction)
        l0 = torch.zeros(len(x)) if l0 is None else l0.detach().reshape(-1).cpu()
        groups = torch.zeros(len(x)).long() if groups is None else groups.reshape(-1).cpu()
        size = max(_CHUNK // self._d, 1)
        for part in zip(*(rows.split(size) for rows in (x, xhat, l0, groups)), strict=True):
            self._add(*part)

    def _add(self, x: Tensor, xhat: Tensor, l0: Tensor, groups: Tensor) -> None:
        mean = self._mean.to(x.dtype)
        # Sums are kept about `mean`, near the centre of the data: nothing cancels.
        centred = x - mean
        residual, spread = _squares(x - xhat), _squares(centred)
        columns = [
            torch.ones_like(residual),
            residual,
            spread,
            torch.where(residual == 0, 0.0, residual / spread),
            l0.double(),
            *_agreement(_squares(x), _squares(xhat), residual),
            *_agreement(spread, _squares(xhat - mean), residual),
        ]
        self._sums.add(torch.stack(columns, 1).numpy(), groups.numpy())
        names, sizes = groups.unique(return_counts=True)
        parts = centred[groups.argsort(stable=True)].split(sizes.tolist())
        offsets = [part.sum(0, dtype=torch.float64) for part in parts]
        self._offsets.add(torch.stack(offsets).numpy(), names.numpy())

    def compute(self) -> dict[str, float]:
        """Return the figures over everything seen.

        Raises:
            ValueError: nothing was seen.
        """
        figures = self._figures(self._sums.total(), self._offsets.total())
        return {name: float(value[0]) for name, value in figures.items()}

    def resample(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures for each row of group weights [draws, groups]: shape [draws]."""
        return self._figures(self._sums.weighted(weights), self._offsets.weighted(weights))

    def _figures(self, sums: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
        n, residual, spread, token_fvu, l0, *agreement = sums.T
        if not n.all():
            raise ValueError("no tokens were counted")
        (squares, product, ratio, cosine), about_mean = agreement[:4], agreement[4:]
        variance = spread - (offsets**2).sum(1) / n
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "fvu": residual / variance,
                "token_fvu": token_fvu / n,
                "mse": residual / n / self._d,
                "cosine": cosine / n,
                "l0": l0 / n,
                "l2_ratio": ratio / n,
                "relative_bias": squares / product,
                "l2_ratio_centred": about_mean[2] / n,
                "relative_bias_centred": about_mean[0] / about_mean[1],
            }


def _rows(x: Tensor) -> Float[Tensor, "tokens d"]:
    """Return tokens as rows, in single precision or finer."""
    x = x.detach().reshape(-1, x.shape[-1])
    return x.to("cpu", torch.promote_types(x.dtype, torch.float32))


def _squares(x: Float[Tensor, "tokens d"]) -> Float[Tensor, " tokens"]:
    """Return squared norms: products of a token in its precision, all that follows in double."""
    return torch.linalg.vector_norm(x, dim=1).double().square()


def _agreement(
    x: Float[Tensor, " tokens"], xhat: Float[Tensor, " tokens"], residual: Float[Tensor, " tokens"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ||xhat||^2, <x, xhat>, ||xhat|| / ||x|| and the cosine, from squared norms.

    The product follows from ||x - xhat||^2: no other pass over the dimensions is needed.
    """
    product = (x + xhat - residual) / 2
    ratio = torch.where(x > 0, (xhat / x).sqrt(), 0.0)
    cosine = torch.where((x > 0) & (xhat > 0), product / (x * xhat).sqrt(), 0.0)
    return xhat, product, ratio, cosine


def interval(
    figures: Mapping[str, np.ndarray], level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of each figure over its draws (which may be infinite)."""
    tail = (1 - level) / 2
    ends = {
        name: np.quantile(draws, [tail, 1 - tail], method="nearest")
        for name, draws in figures.items()
    }
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}
