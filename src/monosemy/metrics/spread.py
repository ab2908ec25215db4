"""What a hook point's activations are like: size, tails, massive ones, how evenly they spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MASSIVE, MASSIVE_TIMES = 100.0, 1000.0
"""A number is massive above the first, and above the second times the median magnitude of its
token's numbers (Sun et al. 2024, arXiv 2402.17762)."""
PAIRS = 4096
"""Tokens kept to compare with one another."""


@dataclass(frozen=True, slots=True)
class SpreadFigures:
    """The figures of one hook point; all but the massive ones are of counted tokens."""

    tokens: int
    d: int
    norm: float
    """Mean norm."""
    std: float
    """Root of the mean variance of a dimension."""
    offset: float
    """|mean| over the root-mean-square distance from it. Where nothing is centred it predicts how
    many features die (arXiv 2605.31518)."""
    kurtosis: float
    """Median over dimensions of the excess kurtosis: 0 for a Gaussian, more for heavier tails."""
    cosine: float
    """Mean cosine of two tokens; mostly that of the mean with itself."""
    centred_cosine: float
    """The same, the mean taken out."""
    participation: float
    """(sum l)^2 / sum l^2 of the covariance's eigenvalues: dimensions that carry variance."""
    iso_score: float
    """IsoScore (Rudman et al. 2022): 1 where all dimensions carry the same variance, 0 where one
    carries all."""
    top_share: float
    """Share of the variance along the first principal component."""
    massive_share: float
    """Share of tokens, special ones included, with a massive activation."""
    massive_dims: list[tuple[int, int]]
    """Dimensions that are massive, and on how many tokens; the most frequent first."""
    massive_positions: list[tuple[int, int]]
    """Positions in a row of text, likewise."""
    norms_by_position: list[float]
    """Mean norm at each position of a row, special tokens included."""
    spectrum: list[float]
    """Eigenvalues of the covariance as shares of their sum, falling."""


class Spread:
    """Accumulate the figures of `SpreadFigures` over batches, however text is cut into them.

    Sums are kept about the mean of the first batch, in double precision: nothing cancels.
    """

    def __init__(self, d: int, context: int) -> None:
        self._n = 0
        self._about: Tensor | None = None
        self._powers = torch.zeros(4, d, dtype=torch.float64)
        self._products = torch.zeros(d, d, dtype=torch.float64)
        self._norms, self._units = 0.0, torch.zeros(d, dtype=torch.float64)
        self._kept: list[Tensor] = []
        self._rows = 0
        self._massive_tokens = 0
        self._dims = torch.zeros(d, dtype=torch.int64)
        self._positions = torch.zeros(context, dtype=torch.int64)
        self._position_norms = torch.zeros(context, dtype=torch.float64)
        self._position_counts = torch.zeros(context, dtype=torch.int64)

    def update(
        self,
        x: Float[Tensor, "batch context d"],
        counted: Bool[Tensor, "batch context"],
        mask: Bool[Tensor, "batch context"],
    ) -> None:
        """Add a batch of rows: `counted` tokens, and all that are not padding by `mask`."""
        self._look_for_massive(x, mask)
        rows = x[counted].cpu().double()
        if not len(rows):
            return
        if self._about is None:
            self._about = rows.mean(0)
        if len(self._kept) < PAIRS:
            self._kept += list(rows[:: max(len(rows) // 512, 1)].float())[: PAIRS - len(self._kept)]
        centred = rows - self._about
        self._n += len(rows)
        power = torch.ones_like(centred)
        for sums in self._powers:
            power *= centred
            sums += power.sum(0)
        self._products += centred.T @ centred
        norms = rows.norm(dim=1, keepdim=True)
        self._norms += norms.sum().item()
        self._units += (rows / norms.clamp_min(1e-30)).sum(0)

    def _look_for_massive(self, x: Tensor, mask: Tensor) -> None:
        self._rows += int(mask.sum())
        large = (x.abs().amax(-1) > MASSIVE) & mask
        size = x[large].float().abs()
        middle = size.median(-1, keepdim=True).values if len(size) else size[:, :1]
        massive = (size > MASSIVE) & (size > MASSIVE_TIMES * middle)
        tokens = massive.any(-1)
        self._massive_tokens += int(tokens.sum())
        self._dims += massive.sum(0).cpu()
        positions = large.nonzero()[:, 1][tokens].cpu()
        self._positions += torch.bincount(positions, minlength=len(self._positions))
        norms = x.float().norm(dim=-1) * mask
        self._position_norms[: x.shape[1]] += norms.sum(0).cpu().double()
        self._position_counts[: x.shape[1]] += mask.sum(0).cpu()

    def compute(self) -> SpreadFigures:
        """Return the figures of all that was added; at least two tokens."""
        n, about = self._n, self._about
        assert about is not None and n > 1
        m1, m2, m3, m4 = self._powers / n
        variance = (m2 - m1**2).clamp_min(0)
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        live = variance > 1e-12 * variance.max()
        kurtosis = (fourth[live] / variance[live] ** 2 - 3).median().item() if live.any() else 0.0
        covariance = self._products / n - torch.outer(m1, m1)
        eigenvalues = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
        total = eigenvalues.sum().clamp_min(1e-30)
        mean = about + m1
        spread = math.sqrt(variance.sum().item())
        return SpreadFigures(
            tokens=n,
            d=len(mean),
            norm=self._norms / n,
            std=math.sqrt(variance.mean().item()),
            offset=mean.norm().item() / max(spread, 1e-30),
            kurtosis=kurtosis,
            cosine=mean_cosine(self._units, n),
            centred_cosine=self._centred_cosine(mean),
            participation=(total**2 / eigenvalues.square().sum().clamp_min(1e-30)).item(),
            iso_score=iso_score(eigenvalues),
            top_share=(eigenvalues[0] / total).item(),
            massive_share=self._massive_tokens / max(self._rows, 1),
            massive_dims=_most(self._dims),
            massive_positions=_most(self._positions),
            norms_by_position=(self._position_norms / self._position_counts.clamp_min(1)).tolist(),
            spectrum=(eigenvalues / total).tolist(),
        )

    def _centred_cosine(self, mean: Tensor) -> float:
        rows = torch.stack(self._kept).double() - mean
        units = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
        return mean_cosine(units.sum(0), len(rows))


def mean_cosine(units: Float[Tensor, " d"], n: int) -> float:
    """Return the mean cosine over all pairs of different vectors, from the sum of n unit ones."""
    return (units.square().sum().item() - n) / max(n * (n - 1), 1)


def iso_score(eigenvalues: Float[Tensor, " d"]) -> float:
    """Return IsoScore (Rudman et al. 2022, algorithm 1) of a covariance's eigenvalues.

    k equal ones of d, the rest 0, give (k - 1) / (d - 1).
    """
    n = len(eigenvalues)
    norm = eigenvalues.norm().item()
    if n < 2 or norm == 0:
        return 0.0
    off = (math.sqrt(n) * eigenvalues / norm - 1).norm().item() / math.sqrt(2 * (n - math.sqrt(n)))
    share = (n - off**2 * (n - math.sqrt(n))) ** 2 / n**2
    return (n * share - 1) / (n - 1)


def _most(counts: Tensor, most: int = 5) -> list[tuple[int, int]]:
    order = counts.argsort(descending=True, stable=True)[:most].tolist()
    return [(place, int(counts[place])) for place in order if counts[place]]
