"""What an intervention does to predictions on text that it is not about."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

EFFECTS = ("ce", "kl", "top1")
"""Columns of `side_effects`."""

_AT_ONCE = 2**22
"""Logits compared at a time."""


def side_effects(
    original: Float[Tensor, "tokens vocab"],
    steered: Float[Tensor, "tokens vocab"],
    targets: Int[Tensor, " tokens"],
) -> Float[np.ndarray, "tokens 3"]:
    """Return of each token by how much its prediction changed; all exactly 0 for equal logits.

    `ce`: cross-entropy of the token that follows, steered less original, nats; `kl`: divergence
    KL(original || steered) of the two distributions, nats; `top1`: 1 where the likeliest token is
    another one.
    """
    size = max(_AT_ONCE // original.shape[1], 1)
    found = []
    for x, y, t in zip(*(a.split(size) for a in (original, steered, targets)), strict=True):
        log_p, log_q = (a.float().log_softmax(-1) for a in (x, y))
        changed = log_p - log_q
        ce = changed.gather(-1, t[:, None])[:, 0]
        kl = torch.linalg.vecdot(log_p.exp(), changed).clamp_min(0)
        top1 = log_p.argmax(-1) != log_q.argmax(-1)
        found.append(torch.stack([ce, kl, top1.float()], 1).double().cpu())
    return torch.cat(found).numpy() if found else np.zeros((0, len(EFFECTS)))
