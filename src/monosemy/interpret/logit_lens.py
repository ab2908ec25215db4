"""The logit lens: which tokens a feature's direction promotes and suppresses, all else ignored.

Its direction goes through the final norm's gain and the unembedding, the mean over the vocabulary
taken away (softmax does not see it). Only the direct path is shown; layers between are not.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.lm import LM


@torch.no_grad()
def logit_lens(
    lm: LM, directions: Float[Tensor, "features d"], count: int = 10
) -> tuple[Float[Tensor, "features both"], Int[Tensor, "features both"]]:
    """Return the `count` most promoted tokens, then the `count` most suppressed, of each feature.

    Special tokens are left out: their unembedding is hardly trained.

    Returns:
        Logit weights for a unit of activation, strongest first in both halves; token ids.

    Raises:
        UserError: the model is not a causal language model.
    """
    unembedding = lm.unembedding()
    v = directions.to(unembedding.weight.device).float()
    if unembedding.centres:
        v = v - v.mean(1, keepdim=True)
    if unembedding.gain is not None:
        v = v * unembedding.gain
    weight = unembedding.weight - unembedding.weight.mean(0)
    hidden = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    hidden[sorted(i for i in lm.special_ids if i < len(weight))] = True
    values, ids = [], []
    for part in v.split(512):
        logits = part @ weight.T
        top = logits.masked_fill(hidden, -torch.inf).topk(count, dim=1)
        bottom = (-logits).masked_fill(hidden, -torch.inf).topk(count, dim=1)
        values.append(torch.cat([top.values, -bottom.values], 1))
        ids.append(torch.cat([top.indices, bottom.indices], 1))
    return torch.cat(values).cpu(), torch.cat(ids).cpu()
