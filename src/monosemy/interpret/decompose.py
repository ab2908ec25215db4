"""Which features a vector is made of.

A steering vector is a difference of activations. To encode it as if it were one fails twice
(Mayne et al. 2024, arXiv 2411.08790): the encoder's biases, made for activations with their mean,
decide what fires - even on a vector of zeros something does - and a difference has negative parts,
which no activation of a feature can be. The remedies stand beside the failure here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.metrics.pursuit import (
    Combination,
    cosine_and_fvu,
    gradient_pursuit_path,
    least_squares,
    matching_pursuit_path,
)

ENCODER = "encoder"
"""The code of the vector, brought to the norm of activations; for it scale and biases are wrong."""
PURSUIT = "gradient pursuit"
"""Gradient pursuit, weights by non-negative least squares on its support."""
NON_NEGATIVE = "non-negative"
"""Orthogonal matching pursuit with weights above 0."""
SIGNED = "signed"
"""Orthogonal matching pursuit with weights of either sign."""
CODES = "code difference"
"""Mean code of one set of texts less that of the other: signed, of activations as they occur."""
RANDOM = "random features"
"""Least squares on features drawn at random, among those that ever fire."""

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of features."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A vector, rebuilt from features of a dictionary."""

    features: Combination
    """The features and their weights; strongest first where they are not chosen one by one."""
    vector: Float[Tensor, " d"]
    cosine: float
    """With the vector that was to be rebuilt; where it is low, features say little of it."""
    fvu: float
    """|v - rebuilt|^2 / |v|^2."""


@dataclass(frozen=True, slots=True)
class Decomposition:
    """A vector as sums of features, by several methods."""

    rebuilt: dict[str, dict[int, Rebuilt]]
    """Method -> number of features -> vector; fewer features where a method has no more."""
    at_zero: int
    """Features that fire on a vector of zeros."""
    biased: float
    """Share of the weights of `encoder` that are on those."""
    negative: float
    """Share of the weights of the code difference that are below 0; of `signed`, without it."""


@torch.no_grad()
def decompose(
    dictionary: Dictionary,
    v: Float[Tensor, " d"],
    norm: float,
    codes: Float[Tensor, " width"] | None = None,
    *,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> Decomposition:
    """Say which features of a dictionary a vector is made of.

    The decoder's bias is no part of a difference, and is left out.

    Args:
        dictionary: whose features.
        v: at the dictionary's hook point.
        norm: mean norm of activations there.
        codes: mean code difference of the texts that v is the mean difference of.
        sizes: numbers of features.
        seed: of the random features.

    Raises:
        UserError: a transcoder, a vector of another width, or of zeros.
    """
    dictionary.check_one_place()
    directions = dictionary.coder.W_dec.detach().float()
    v = v.detach().to(directions)
    if len(v) != dictionary.d_in:
        raise UserError(
            f"the vector has {len(v)} numbers, activations at `{dictionary.hookpoint}` have "
            f"{dictionary.d_in}",
            "take the vector of the dictionary's own hook point",
        )
    if not v.norm() > 0:
        raise UserError("the vector is zero, so nothing is in it", "take texts that differ")
    most = max(sizes)
    scale = norm / v.norm()
    encoded = dictionary.encode((scale * v)[None])[0] / scale
    fired = dictionary.encode(torch.zeros_like(v)[None])[0] > 0
    paths = {
        ENCODER: _strongest(encoded, sizes),
        PURSUIT: _of_sizes(gradient_pursuit_path(v, directions, most), sizes),
        NON_NEGATIVE: _of_sizes(matching_pursuit_path(v, directions, most, signed=False), sizes),
        SIGNED: _of_sizes(matching_pursuit_path(v, directions, most, signed=True), sizes),
        RANDOM: _drawn(dictionary, v, sizes, seed),
    }
    if codes is not None:
        paths[CODES] = _strongest(codes.to(v), sizes)
    weights = paths[SIGNED][most].weights if codes is None else codes
    return Decomposition(
        {
            method: {size: _rebuilt(v, directions, found) for size, found in path.items()}
            for method, path in paths.items()
        },
        at_zero=int(fired.sum()),
        biased=_share(encoded[fired].sum(), encoded.sum()),
        negative=_share(weights.clamp_max(0).abs().sum(), weights.abs().sum()),
    )


def _rebuilt(
    v: Float[Tensor, " d"], directions: Float[Tensor, "n d"], found: Combination
) -> Rebuilt:
    vector = found.vector(directions)
    return Rebuilt(found, vector, *cosine_and_fvu(v, vector))


def _strongest(weights: Float[Tensor, " width"], sizes: Sequence[int]) -> dict[int, Combination]:
    """Return the features of the largest weights; directions have norm 1."""
    order = weights.abs().argsort(descending=True)
    order = order[: int((weights != 0).sum())]
    return {size: Combination(order[:size], weights[order[:size]]) for size in sizes}


def _of_sizes(path: Iterable[Combination], sizes: Sequence[int]) -> dict[int, Combination]:
    """Return, for each size, the last combination of so many features at most."""
    none = Combination(torch.zeros(0, dtype=torch.long), torch.zeros(0))
    found = {size: none for size in sizes}
    for combination in path:
        for size in sizes:
            if len(combination.chosen) <= size:
                found[size] = combination
    return found


def _drawn(
    dictionary: Dictionary, v: Float[Tensor, " d"], sizes: Sequence[int], seed: int
) -> dict[int, Combination]:
    live = dictionary.strength.cpu().nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    order = live[torch.randperm(len(live), generator=generator)].tolist()
    directions = dictionary.coder.W_dec.detach().float()
    return {s: least_squares(v, directions, order[:s], signed=True) for s in sizes}


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0
