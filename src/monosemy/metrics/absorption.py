"""Feature absorption: where a general feature is silent because a special one speaks for it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ABSORBERS = 3
"""Features at most that are counted as absorbing a token's concept."""
ABSORBER_COSINE = 0.1
"""Of an absorbing feature's direction with the probe's, at least."""
ABSORBER_SHARE = 0.4
"""Of the token's projection, that absorbing features explain at least."""
FULL_COSINE = 0.025
"""As `ABSORBER_COSINE`, for the one feature of full absorption."""
SILENT = 1e-8
"""Activation below which a feature is silent."""


def absorption_fraction(
    main: Float[Tensor, " n"], absorbed: Float[Tensor, " n"], projection: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return how much of a concept other features carry than its own, for each token.

    Chanin et al. 2024 (arXiv 2409.14507) as in SAEBench: with M what the concept's own features
    write along its probe, A what absorbing ones do, and P the token's whole projection, it is 0
    where M >= P or A/P < 0.4, 1 where M <= 0, else a/(a + M) with a = min(A, P - M).

    Args:
        main: M.
        absorbed: A.
        projection: P, above 0.
    """
    a = torch.minimum(absorbed, projection - main)
    share = torch.where(main <= 0, torch.ones_like(main), a / (a + main))
    none = (main >= projection) | (absorbed / projection < ABSORBER_SHARE)
    return share.masked_fill(none, 0)


def absorption(
    z: Float[Tensor, "n width"],
    W_dec: Float[Tensor, "width d"],
    probe: Float[Tensor, " d"],
    own: Bool[Tensor, " width"],
    projection: Float[Tensor, " n"],
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Return how far, and whether fully, each token's concept is absorbed.

    What feature i writes along the probe is z_i <d_i, w>, whatever its direction's length. The up
    to 3 features that write most count as absorbing, if their cosine with the probe is 0.1 or
    more. Absorption is full where all of the concept's own features are silent and the one feature
    that writes most has a cosine of 0.025 or more and explains 0.4 of the projection.

    Args:
        z: activations on tokens that have the concept, and of which the probe says so.
        W_dec: directions.
        probe: the concept's direction w, of unit norm.
        own: the features that stand for the concept.
        projection: of each token's activations on the probe.

    Returns:
        The absorption fraction, and whether absorption is full.
    """
    along = W_dec @ probe
    cosine = along / W_dec.norm(dim=1).clamp_min(1e-12)
    writes = z * along
    main = writes[:, own].sum(1)
    near = writes.masked_fill(own | (cosine < ABSORBER_COSINE), 0).clamp_min(0)
    most = near.topk(min(ABSORBERS, near.shape[1]), dim=1).values.sum(1)
    silent = (z[:, own] < SILENT).all(1)
    top, which = writes.max(1)
    full = silent & (cosine[which] >= FULL_COSINE) & (top / projection >= ABSORBER_SHARE)
    return absorption_fraction(main, most, projection), full
