"""The centre and scale of activations, measured once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

RIDGE = 1e-2
"""Added to the variance of every direction before whitening, in shares of the mean variance: what
hardly varies is noise, and would else be made as loud as the rest."""
_ROWS = 4096
"""Taken at a time: in double precision a whole sample would be the peak of a run's memory."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Centre and scale of activations at one hook point.

    `(x - mean) * scale` has mean zero and mean norm sqrt(d_in), so that one set of training
    defaults serves every layer of every model. With whitening, so has `(x - mean) @ whiten`, whose
    directions besides vary alike and are not correlated.
    """

    mean: Float[Tensor, " d_in"]
    scale: float
    offset: float
    """|mean| over the root-mean-square distance from it; large offsets kill features unless
    activations are centred."""
    whiten: Float[Tensor, "d_in d_in"] | None = None
    """Takes correlations out: symmetric (ZCA, Bell & Sejnowski 1997), so that directions stay where
    they are as far as they can; None: not asked for."""
    colour: Float[Tensor, "d_in d_in"] | None = None
    """Its inverse."""

    @classmethod
    def of(cls, batches: Iterable[Float[Tensor, "_ d_in"]], *, whiten: bool = False) -> Statistics:
        """Measure a sample, which should be shuffled over documents and free of special tokens."""
        parts = [part for batch in batches for part in batch.split(_ROWS)]
        n = sum(map(len, parts))
        # On the CPU, as not every device has doubles.
        total = sum((part.cpu().double().sum(0) for part in parts), torch.zeros(1).double())
        mean, norm, square = total / n, 0.0, 0.0
        for part in parts:
            norms = (part.cpu().double() - mean).norm(dim=-1)
            norm += norms.sum().item() / n
            square += norms.square().sum().item() / n
        spread = math.sqrt(square)
        whitening, inverse = _whitening(parts, mean) if whiten else (None, None)
        return cls(
            mean=mean.float(),
            scale=math.sqrt(len(mean)) / max(norm, 1e-12),
            offset=mean.norm().item() / max(spread, 1e-12),
            whiten=whitening,
            colour=inverse,
        )

    def apply(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Centre, and scale or whiten."""
        centred = x - self.mean.to(x.device)
        return centred * self.scale if self.whiten is None else centred @ self.whiten.to(x.device)

    def undo(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Return to the model's own scale and centre."""
        spread = x / self.scale if self.colour is None else x @ self.colour.to(x.device)
        return spread + self.mean.to(x.device)


def _whitening(
    parts: Sequence[Float[Tensor, "_ d"]], mean: Float64[Tensor, " d"]
) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """Return the symmetric matrix that whitens, to mean norm sqrt(d), and its inverse."""
    d, n = len(mean), sum(map(len, parts))
    covariance = torch.zeros(d, d, dtype=torch.float64)
    for part in parts:
        centred = part.cpu().double() - mean
        covariance += centred.T @ centred / n
    values, directions = torch.linalg.eigh(covariance)
    values = values.clamp_min(0) + max(RIDGE * values.clamp_min(0).mean().item(), 1e-24)
    whiten = directions * values.rsqrt() @ directions.T
    norm = sum(((part.cpu().double() - mean) @ whiten).norm(dim=1).sum().item() for part in parts)
    scale = math.sqrt(d) / max(norm / n, 1e-12)
    colour = directions * values.sqrt() @ directions.T
    return (whiten * scale).float(), (colour / scale).float()
