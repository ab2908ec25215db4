"""The centre and scale of activations, measured once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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
    def of(cls, batches: Iterable[Float[Tensor, "tokens d_in"]]) -> Statistics:
        """Measure a sample, which should be shuffled over documents and free of special tokens."""
        x = torch.cat([batch.cpu().double() for batch in batches])  # not every device has doubles
        mean = x.mean(0)
        centred = x - mean
        norm = centred.norm(dim=-1).mean().item()
        spread = centred.square().sum(-1).mean().sqrt().item()
        return cls(
            mean=mean.float(),
            scale=math.sqrt(x.shape[1]) / max(norm, 1e-12),
            offset=mean.norm().item() / max(spread, 1e-12),
        )

    def apply(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Centre and scale."""
        return (x - self.mean.to(x.device)) * self.scale

    def undo(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Return to the model's own scale and centre."""
        return x / self.scale + self.mean.to(x.device)
