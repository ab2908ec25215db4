"""Linear decompositions of activations with the k largest factors of a token kept: baselines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosemy.evaluation.baselines import Reconstruct, largest, principal_axes
from monosemy.evaluation.subject import NotMeaningful

MOST = 256
"""Components: of more dimensions only the principal axes are decomposed."""
LEAST_VARIANCE = 1e-6
"""Of a principal axis, in shares of the largest: less is noise, which whitening would blow up."""
NNLS_STEPS = 100


@dataclass(frozen=True, slots=True)
class Components:
    """Factors of activations: z = (x - mean) @ encoder, and x again is mean + z @ directions."""

    mean: Float[Tensor, " d"]
    encoder: Float[Tensor, "d n"]
    directions: Float[Tensor, "n d"]
    converged: bool = True
    """Whether the iteration that found them came to rest."""

    def largest(self, k: int) -> Reconstruct:
        """Return what the k factors of largest magnitude make of each token."""
        k = min(k, len(self.directions))

        def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
            z = largest((x - self.mean) @ self.encoder, k)
            return self.mean + z @ self.directions, torch.full((len(x),), k, device=x.device)

        return reconstruct


def principal(sample: Float[Tensor, "tokens d"]) -> Components:
    """Return principal components, all of them: orthonormal directions."""
    mean, _, axes = principal_axes(sample)
    return Components(mean, axes, axes.T)


def scaled_neurons(sample: Float[Tensor, "tokens d"]) -> Components:
    """Return coordinates in units of their standard deviations."""
    spread = sample.std(0).clamp_min(1e-12)
    return Components(sample.mean(0), (1 / spread).diag(), spread.diag())


def independent(sample: Float[Tensor, "tokens d"], steps: int, seed: int) -> Components:
    """Return components whose factors, each of variance 1, are as independent as can be.

    FastICA (Hyvarinen & Oja 2000) of the principal axes that hold variance, 256 at most.

    Raises:
        NotMeaningful: scikit-learn is not installed.
    """
    decomposition = _scikit_learn()
    mean, variances, axes = principal_axes(sample)
    whiten = axes / variances.clamp_min(1e-30).sqrt()
    whiten = whiten[:, variances > LEAST_VARIANCE * variances[0]][:, :MOST]
    back = (axes * variances.clamp_min(0).sqrt())[:, : whiten.shape[1]].T
    ica = decomposition.FastICA(whiten=False, max_iter=steps, tol=1e-3, random_state=seed)
    with _unconverged():
        ica.fit(((sample - mean) @ whiten).cpu().numpy())
    unmixing = torch.from_numpy(ica.components_).to(sample)  # a rotation: its inverse is itself, .T
    return Components(mean, whiten @ unmixing.T, unmixing @ back, ica.n_iter_ < steps)


@dataclass(frozen=True, slots=True)
class NonNegativeComponents:
    """Non-negative factors of activations' positive and negative parts, about their mean."""

    mean: Float[Tensor, " d"]
    parts: Float[Tensor, "n twice_d"]
    """Directions of unit norm: of positive parts, then of negative ones."""
    converged: bool

    def codes(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens n"]:
        """Return the non-negative factors that fit each token best."""
        return nnls(split_signs(x - self.mean), self.parts)

    def largest(self, k: int) -> Reconstruct:
        """Return what the k largest factors of each token, fitted again by themselves, make of it.

        Tokens may use fewer than k: factors that are 0 count as unused.
        """
        k, d = min(k, len(self.parts)), self.parts.shape[1] // 2

        def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
            z = nnls(split_signs(x - self.mean), self.parts, largest(self.codes(x), k) > 0)
            both = z @ self.parts
            return self.mean + both[:, :d] - both[:, d:], (z > 0).sum(1)

        return reconstruct


def non_negative(
    sample: Float[Tensor, "tokens d"], components: int, steps: int, seed: int
) -> NonNegativeComponents:
    """Return non-negative components of [x+, x-], x about its mean (NMF, Lee & Seung 1999).

    By coordinate descent, from random factors.

    Raises:
        NotMeaningful: scikit-learn is not installed.
    """
    decomposition = _scikit_learn()
    mean = sample.mean(0)
    nmf = decomposition.NMF(components, init="random", max_iter=steps, random_state=seed)
    with _unconverged():
        nmf.fit(split_signs(sample - mean).cpu().numpy())
    parts = torch.from_numpy(nmf.components_).to(sample)
    parts = parts / parts.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return NonNegativeComponents(mean, parts, nmf.n_iter_ < steps)


def split_signs(x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens twice_d"]:
    """Return positive parts, then negative ones, both as non-negative numbers."""
    return torch.cat([x.relu(), (-x).relu()], 1)


def nnls(
    x: Float[Tensor, "tokens d"],
    directions: Float[Tensor, "n d"],
    allowed: Bool[Tensor, "tokens n"] | None = None,
    steps: int = NNLS_STEPS,
) -> Float[Tensor, "tokens n"]:
    """Return non-negative factors z for which z @ directions is nearest to x, all tokens at once.

    Accelerated projected gradient descent (Beck & Teboulle 2009, section 4), begun anew where a
    step goes uphill (O'Donoghue & Candes 2015).

    Args:
        x: what is to be fitted.
        directions: fixed.
        allowed: factors that need not be 0; None: all.
        steps: of descent.
    """
    gram, target = directions @ directions.T, x @ directions.T
    rate = 1 / torch.linalg.matrix_norm(gram, 2).clamp_min(1e-12)
    z = torch.zeros_like(target)
    ahead, momentum = z, torch.ones(len(x), 1).to(x)
    for _ in range(steps):
        after = (ahead + rate * (target - ahead @ gram)).relu()
        if allowed is not None:
            after = after * allowed
        uphill = ((ahead - after) * (after - z)).sum(1, keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        later = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ahead = after + (momentum - 1) / later * (after - z)
        z, momentum = after, later
    return z


def _scikit_learn() -> Any:
    """Return its module of decompositions."""
    try:
        from sklearn import decomposition
    except ImportError as error:
        raise NotMeaningful(
            "independent and non-negative components need scikit-learn: "
            "pip install 'monosemy[evaluate]'"
        ) from error
    return decomposition


@contextmanager
def _unconverged() -> Iterator[None]:
    """Leave it to `converged` to say that steps ran out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with np.errstate(all="ignore"):
            yield
