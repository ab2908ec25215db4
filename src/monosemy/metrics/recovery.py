"""How much of a known set of features a dictionary has found."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

CHUNK = 4096
"""Rows compared at a time, to bound memory; it changes no figure."""


def mean_max_cosine(learned: Float[Tensor, "width d"], truth: Float[Tensor, "n d"]) -> float:
    """Return the mean, over true directions, of the largest cosine to any learned direction.

    MMCS of Sharkey et al. 2022 ("Taking features out of superposition with sparse autoencoders"):
    mean_i max_j cos(truth_i, learned_j). 1 where every true direction was found, up to positive
    scale; the cosine is signed: a direction found upside down does not count as found. A row of
    zeros has cosine 0 with everything.

    It is not one-to-one: several true directions may share one learned direction, and learned
    directions that match nothing cost nothing. It grows with `width` by chance alone: compare it
    with that of as many random directions (about .37 for 512 of them against 512 in 64
    dimensions). It is not symmetric in its arguments.

    Raises:
        ValueError: there are no learned or no true directions.
    """
    if not len(learned) or not len(truth):
        raise ValueError(f"{len(learned)} learned and {len(truth)} true directions")
    return float(max_cosines(learned, truth).double().mean())


def max_cosines(
    learned: Float[Tensor, "width d"], truth: Float[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    """Return the largest cosine of each true direction to any learned one."""
    learned = normalize(learned.detach().float(), dim=1)
    truth = normalize(truth.detach().float(), dim=1)
    return torch.cat([(rows @ learned.T).amax(1) for rows in truth.split(CHUNK)])


def recovery_f1(
    z_learned: Float[Tensor, "tokens width"], z_true: Float[Tensor, "tokens n"]
) -> float:
    """Return the mean, over true features, of the best F1 of any learned feature at firing with it.

    A feature fires on a token where its value is above 0. For true feature i and learned feature
    j, over all tokens, F1_ij = 2 n_ij / (n_i + n_j): n_ij tokens on which both fire, n_i and n_j
    those on which each does; this is the harmonic mean of precision n_ij / n_j and recall
    n_ij / n_i. The result is mean_i max_j F1_ij over the true features that fire at all, each of
    the same weight however rare. 1 where each fires on exactly the tokens of some learned feature.

    As in `mean_max_cosine`, one learned feature may serve several true ones. Its floor is not 0:
    a learned feature that fires on every token has F1 = 2 f / (1 + f) with a feature of
    frequency f. Features that fire on a handful of tokens are matched by chance: take enough
    tokens. Counts are exact up to 2^24 tokens.

    Raises:
        ValueError: no true feature fires, or there are no learned features.
    """
    width, n = z_learned.shape[1], z_true.shape[1]
    both = torch.zeros(n, width, device=z_learned.device)
    n_learned = torch.zeros(width, device=z_learned.device)
    n_true = torch.zeros(n, device=z_learned.device)
    for learned, true in zip(z_learned.split(CHUNK), z_true.split(CHUNK), strict=True):
        fires_learned, fires_true = (learned > 0).float(), (true > 0).float()
        both += fires_true.T @ fires_learned
        n_learned += fires_learned.sum(0)
        n_true += fires_true.sum(0)
    seen = n_true > 0
    if not width or not seen.any():
        raise ValueError(f"{width} learned features; {int(seen.sum())} true features fire")
    f1 = 2 * both[seen] / (n_true[seen, None] + n_learned)
    return float(f1.amax(1).double().mean())
