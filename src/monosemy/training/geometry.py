"""Where training starts, taken from data."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders import SparseCoder
from monosemy.coders.coder import unit_rows
from monosemy.coders.select import Scorer

_ROUNDS = 100
_CLOSE = 1e-6
_SAMPLE = 1024


@torch.no_grad()
def geometric_median(x: Float[Tensor, "tokens d"]) -> Float[Tensor, " d"]:
    """Return the point with the least mean distance to all rows, by Weiszfeld's iteration.

    In double precision; a row that the point falls on counts as a small distance away.
    """
    rows = x.cpu().double()
    median = rows.mean(0)
    for _ in range(_ROUNDS):
        distances = (rows - median).norm(dim=1)
        weights = 1 / distances.clamp_min(_CLOSE * max(distances.mean().item(), 1e-30))
        moved = (weights[:, None] * rows).sum(0) / weights.sum()
        done = (moved - median).norm() <= _CLOSE * max(distances.mean().item(), 1e-30)
        median = moved
        if done:
            break
    return median.to(x)


@torch.no_grad()
def start_from_data(
    coder: SparseCoder,
    x: Float[Tensor, "tokens d_in"],
    y: Float[Tensor, "tokens d_out"],
    l0: float,
    seed: int,
) -> None:
    """Take tokens for directions: decoder rows from what is explained, encoder rows from inputs.

    Tokens are drawn without replacement as far as there are enough. Their directions are much
    alike, and several that fire together would overshoot many times: encoder rows are shrunk by
    the one factor that makes the l0 strongest features of a token fit best.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(x), generator=generator) for _ in range(-(-coder.width // len(x)))]
    drawn = torch.cat(orders)[: coder.width].to(x.device)
    coder.W_dec.copy_(unit_rows(y[drawn]) * coder.W_dec.norm(dim=1, keepdim=True))
    if coder.tied:
        return
    coder.W_enc.copy_(unit_rows(x[drawn]))
    x, y = x[:_SAMPLE], y[:_SAMPLE]
    scorer = Scorer(x.device, dtype=x.dtype)
    support, values = scorer.topk(x, coder.W_enc, coder.b_enc, max(round(l0), 1))
    out = support.decode(values, coder.W_dec)
    coder.W_enc.mul_((out * y).sum() / out.square().sum().clamp_min(1e-12))
