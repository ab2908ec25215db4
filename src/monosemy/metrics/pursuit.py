"""A vector as a sum of few directions, chosen one after another.

`directions` [n, d] are rows of any norm but 0, `v` [d] is to be explained, weights a [n] are sought
with v ~ a @ directions. Residuals are in the precision given, least squares on what was chosen in
double precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

_NOTHING = 1e-6
"""Cosine with the vector below which a direction explains nothing of it."""
_DONE = 1e-5
"""Share of the vector's length below which what is left is rounding."""
_TRIES = 4
"""Steps for each direction wanted: some steps choose none that is new."""


@dataclass(frozen=True, slots=True)
class Combination:
    """Some directions, in the order in which they were chosen, and their weights."""

    chosen: Int[Tensor, " k"]
    weights: Float[Tensor, " k"]

    def vector(self, directions: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
        """Return the weighted sum."""
        return self.weights.to(directions) @ directions[self.chosen]


def gradient_pursuit(
    v: Float[Tensor, " d"], directions: Float[Tensor, "n d"], steps: int
) -> Float[Tensor, " n"]:
    """Return non-negative weights by gradient pursuit (Blumensath & Davies 2008).

    Each step adds the direction of largest product with what is left, g its and the others'
    products, and goes along g as far as is best: a = max(a + <gD, r> / |gD|^2 g, 0). A step may
    choose what is chosen already, and weights are not optimal after k steps (Smith et al. 2024):
    finish with `least_squares` on the support.
    """
    weights = v.new_zeros(len(directions))
    for weights in _gradient_steps(v, directions, steps):  # noqa: B007
        pass
    return weights


def _gradient_steps(
    v: Float[Tensor, " d"], directions: Float[Tensor, "n d"], steps: int
) -> Iterator[Float[Tensor, " n"]]:
    weights = v.new_zeros(len(directions))
    support = torch.zeros(len(directions), dtype=torch.bool, device=v.device)
    norms = directions.norm(dim=1)
    for _ in range(steps):
        left = v - weights @ directions
        products = directions @ left
        best = products.argmax()
        if left.norm() <= _DONE * v.norm() or products[best] <= _NOTHING * norms[best] * v.norm():
            return
        support[best] = True
        gradient = products * support
        along = gradient @ directions
        weights = (weights + (along @ left) / (along @ along) * gradient).clamp_min(0)
        yield weights


def gradient_pursuit_path(
    v: Float[Tensor, " d"], directions: Float[Tensor, "n d"], most: int
) -> Iterator[Combination]:
    """Yield combinations of 1, 2, ... directions, as gradient pursuit chooses them.

    Weights are non-negative least squares on what was chosen. It ends early where nothing more
    has a positive product with what is left.
    """
    chosen: list[int] = []
    for weights in _gradient_steps(v, directions, _TRIES * most):
        now = weights.nonzero()[:, 0].tolist()
        new = [i for i in now if i not in chosen]
        if not new:
            continue
        chosen += new
        yield least_squares(v, directions, chosen, signed=False)
        if len(chosen) >= most:
            return


def matching_pursuit_path(
    v: Float[Tensor, " d"], directions: Float[Tensor, "n d"], most: int, *, signed: bool
) -> Iterator[Combination]:
    """Yield combinations of 1, 2, ... directions by orthogonal matching pursuit (Pati et al. 1993).

    Each step adds the direction of the largest cosine with what is left (of either sign, or
    positive), then fits all weights anew. Without signs, weights are non-negative least squares,
    and a direction whose weight becomes 0 is given up again.
    """
    units = directions / directions.norm(dim=1, keepdim=True)
    chosen: list[int] = []
    reached = 0
    left, size = v, v.norm()
    for _ in range(_TRIES * most):
        cosines = units @ left
        cosines = cosines.abs() if signed else cosines
        cosines[chosen] = 0
        best = int(cosines.argmax())
        if cosines[best] <= _NOTHING * size:
            return
        found = least_squares(v, directions, [*chosen, best], signed=signed)
        chosen = found.chosen.tolist()
        left = v - found.vector(directions)
        if len(chosen) > reached:
            reached = len(chosen)
            yield found
        if reached >= most or left.norm() <= _DONE * size:
            return


def least_squares(
    v: Float[Tensor, " d"],
    directions: Float[Tensor, "n d"],
    chosen: list[int],
    *,
    signed: bool,
) -> Combination:
    """Return the best weights of some directions; without signs, of those with a weight above 0."""
    rows = directions[chosen].detach().double().cpu().numpy()
    wanted = v.detach().double().cpu().numpy()
    if signed:
        weights = np.linalg.lstsq(rows.T, wanted, rcond=None)[0]
        kept = np.arange(len(chosen))
    else:
        weights, _ = nnls(rows.T, wanted)
        kept = np.flatnonzero(weights > 0)
    return Combination(
        torch.tensor([chosen[i] for i in kept], dtype=torch.long, device=v.device),
        torch.from_numpy(weights[kept]).to(v),
    )


def cosine_and_fvu(v: Float[Tensor, " d"], made: Float[Tensor, " d"]) -> tuple[float, float]:
    """Return the cosine of two vectors, and |v - made|^2 / |v|^2: the share left unexplained.

    The cosine is 0 where either is zero.
    """
    v, made = v.double(), made.double()
    size = float(v.norm() * made.norm())
    cosine = float(v @ made) / size if size > 0 else 0.0
    return cosine, float((v - made).square().sum() / v.square().sum())
