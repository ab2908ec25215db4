"""How far the features of two dictionaries are the same, matched one to one."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor
from torch.nn.functional import normalize

from monosemy.metrics.recovery import CHUNK

EXACT = 4096
"""Features up to which all pairs are considered in matching."""
CANDIDATES = 50
"""Beyond: how many of the nearest, for each feature of the first dictionary."""


def match(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Int[Tensor, " n"]:
    """Return the partner of each direction of a among those of b, -1 where it has none.

    No two have the same partner, and the sum of cosines is the largest there is (Hungarian
    matching). Cosines are signed: an opposite direction is another feature. Of more than `EXACT`
    directions the `CANDIDATES` nearest of each are considered, and one of them or none is the
    partner: a cosine below 0 then counts as none.
    """
    a, b = _unit(a), _unit(b)
    if max(len(a), len(b)) <= EXACT:
        return match_cosines(a @ b.T)
    return _match_nearest(a, b)


def match_cosines(cosines: Float[Tensor, "n m"]) -> Int[Tensor, " n"]:
    """Return the column of each row so that the sum is the largest, -1 where there are too few."""
    rows, columns = linear_sum_assignment(cosines.double().numpy(), maximize=True)
    partners = torch.full((len(cosines),), -1)
    partners[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return partners


def partner_cosines(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], partners: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return the cosine of each direction of a with its partner in b, 0 where it has none."""
    found = (_unit(a) * _unit(b)[partners.clamp_min(0)]).sum(1)
    return found.masked_fill(partners < 0, 0)


def rotation(d: int, seed: int) -> Float[Tensor, "d d"]:
    """Return a random rotation or reflection, all alike likely (Haar measure)."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).float()


def _unit(rows: Tensor) -> Tensor:
    return normalize(rows.detach().float().cpu(), dim=1)


def _match_nearest(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Int[Tensor, " n"]:
    """Match within the nearest of each; exact but for pairs that are not among them."""
    (n, m), k = (len(a), len(b)), min(CANDIDATES, len(b))
    parts = [(rows @ b.T).topk(k) for rows in a.split(CHUNK)]
    # Beside its candidates each row has a column of its own, of cosine 0: to have no partner.
    # All weights are raised by 1, as those of 0 would be no edges.
    own = torch.arange(n)[:, None]
    columns = torch.cat([torch.cat([part.indices for part in parts]), m + own], 1)
    cosines = torch.cat([part.values for part in parts]).clamp_min(0)
    weights = 1 + torch.cat([cosines, torch.zeros(n, 1)], 1).double()
    graph = csr_matrix(
        (weights.flatten().numpy(), columns.flatten().numpy(), np.arange(n + 1) * (k + 1)),
        shape=(n, m + n),
    )
    rows, found = min_weight_full_bipartite_matching(graph, maximize=True)
    partners = torch.full((n,), -1)
    partners[torch.from_numpy(rows).long()] = torch.from_numpy(found).long()
    return partners.masked_fill(partners >= m, -1)
