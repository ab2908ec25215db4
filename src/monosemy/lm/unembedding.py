"""The way from the residual stream to the vocabulary, for the logit lens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Unembedding(NamedTuple):
    """Final norm and unembedding matrix, in fp32.

    A residual direction `v` promotes tokens by `weight @ (gain * v)`, where `v` loses its mean
    first if `centres`. Soft-capping of logits (Gemma 2) keeps their order and is left out.
    """

    weight: Float[Tensor, "vocab d"]
    gain: Float[Tensor, " d"] | None
    """What the final norm multiplies each dimension by; None for a model without one."""
    bias: Float[Tensor, " vocab"] | None
    centres: bool
    """Whether the final norm takes the mean away (LayerNorm) or not (RMSNorm)."""


@torch.no_grad()
def measure_norm(norm: nn.Module, width: int) -> tuple[Float[Tensor, " d"], bool]:
    """Return the gain of a norm, and whether it takes the mean away.

    Both are measured, not read off: families store the gain as it is, as what is added to one
    (Gemma), or not at all (OLMo). Half the difference of opposite inputs is free of the bias.
    """
    like = next(norm.parameters(), torch.empty(0))
    level = torch.ones(width, device=like.device, dtype=like.dtype)
    wave = level.clone()
    wave[1::2] = -1
    if width % 2:
        wave[-3:] = torch.tensor([1, 1, -2])  # still of mean zero, and zero nowhere
    gain = _odd_part(norm, wave) / wave * wave.square().mean().sqrt()
    centres = bool(_odd_part(norm, level).abs().max() < 1e-3 * gain.abs().max())
    return gain.float(), centres


def _odd_part(norm: nn.Module, x: Tensor) -> Tensor:
    return (norm(x[None, None]) - norm(-x[None, None]))[0, 0] / 2
