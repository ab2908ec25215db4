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
    """

    def __init__(self, mean: Float[Tensor, " d"]) -> None:
        """Start with nothing seen; `mean` is the centre that `token_fvu` measures from."""
        self._mean = mean.detach().double().cpu()
        self._d = mean.shape[0]
        self._sums = GroupSums(6 + self._d)

    def update(
        self,
        x: Float[Tensor, "*batch d"],
        reconstruction: Float[Tensor, "*batch d"],
        l0: Real[Tensor, "*batch"] | None = None,
        groups: Int[Tensor, "*batch"] | None = None,
    ) -> None:
        """Add tokens: any leading shape, `groups` the non-negative group number of each."""
        x = x.detach().reshape(-1, self._d).double().cpu()
        xhat = reconstruction.detach().reshape(-1, self._d).double().cpu()
        # Sums are kept about `mean`, near the centre of the data: nothing cancels.
        centred = x - self._mean
        residual = (x - xhat).square().sum(-1)
        spread = centred.square().sum(-1)
        columns = [
            torch.ones_like(residual),
            residual,
            spread,
            torch.where(residual == 0, 0.0, residual / spread),
            torch.nn.functional.cosine_similarity(x, xhat, dim=-1),
            torch.zeros_like(residual) if l0 is None else l0.detach().reshape(-1).double().cpu(),
        ]
        rows = torch.cat([torch.stack(columns, 1), centred], 1)
        self._sums.add(rows.numpy(), None if groups is None else groups.reshape(-1).cpu().numpy())

    def compute(self) -> dict[str, float]:
        """Return the figures over everything seen.

        Raises:
            ValueError: nothing was seen.
        """
        return {name: float(value[0]) for name, value in self._figures(self._sums.total()).items()}

    def resample(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures for each row of group weights [draws, groups]: shape [draws]."""
        return self._figures(self._sums.weighted(weights))

    def _figures(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        n, residual, spread, token_fvu, cosine, l0 = sums[:, :6].T
        if not n.all():
            raise ValueError("no tokens were counted")
        variance = spread - (sums[:, 6:] ** 2).sum(1) / n
        with np.errstate(divide="ignore", invalid="ignore"):
            fvu = residual / variance
        return {
            "fvu": fvu,
            "token_fvu": token_fvu / n,
            "mse": residual / n / self._d,
            "cosine": cosine / n,
            "l0": l0 / n,
        }


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
