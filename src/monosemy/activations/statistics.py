"""The centre and scale of activations, measured once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_ROWS = 4096
"""Taken at a time: in double precision a whole sample would be the peak of a run's memory."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Centre and scale of activations at one hook point.

    `(x - mean) * scale` has mean zero and mean norm sqrt(d_in), so that one set of training
    defaults serves every layer of every model.
    """

    mean: Float[Tensor, " d_in"]
    scale: float
    offset: float
    """|mean| over the root-mean-square distance from it; large offsets kill features unless
    activations are centred."""

    @classmethod
    def of(cls, batches: Iterable[Float[Tensor, "_ d_in"]]) -> Statistics:
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
        return cls(
            mean=mean.float(),
            scale=math.sqrt(len(mean)) / max(norm, 1e-12),
            offset=mean.norm().item() / max(spread, 1e-12),
        )

    def apply(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Centre and scale."""
        return (x - self.mean.to(x.device)) * self.scale

    def undo(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Return to the model's own scale and centre."""
        return x / self.scale + self.mean.to(x.device)
