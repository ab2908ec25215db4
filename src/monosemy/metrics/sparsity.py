"""How few of a model's predictions an intervention changes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def effect_sparsity(
    change: Float[Tensor, "n time vocab"], *, centre: bool = True
) -> Float[Tensor, " n"]:
    """Return (L1 / L2)^2 / N of each change of N = time * vocab logits, in (0, 1].

    It is the share of logits that change, as if all that do changed alike: 1 / N for one of them,
    1 for all, 2 / pi for Gaussian noise. NaN where none changes. Ablation sparsity of Gao et al.
    2024 (arXiv 2406.04093, section 4.5).

    Args:
        change: logits with the intervention less those without, fp32 or finer.
        centre: take out each position's median over the vocabulary, so that a number added to all
            logits of a position, which changes no prediction, changes nothing here.
    """
    if centre:
        change = change - change.median(-1, keepdim=True).values
    flat = change.flatten(1).double()
    ones, squares = flat.abs().sum(1), flat.square().sum(1)
    return torch.where(squares > 0, ones.square() / squares / flat.shape[1], torch.nan)
