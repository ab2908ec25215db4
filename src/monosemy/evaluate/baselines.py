"""What a dictionary must beat: reconstructions that need no training of features."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.activations import Statistics
from monosemy.coders import Dictionary, TopK

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Activations [tokens, d_in] -> reconstruction [tokens, d_in], numbers used a token [tokens]."""


def of_dictionary(dictionary: Dictionary) -> Reconstruct:
    """Return the dictionary as a reconstruction."""

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        code = dictionary.encode_sparse(x)
        return dictionary.coder.decode_sparse(code), code.l0

    return reconstruct


def pca(sample: Float[Tensor, "tokens d_in"], components: int) -> Reconstruct:
    """Return the projection on the first principal components of a training sample."""
    x = sample.cpu().double()
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    basis = torch.linalg.eigh(covariance).eigenvectors[:, -components:].to(sample)
    centre = mean.to(sample)

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        xhat = centre + (x - centre) @ basis @ basis.T
        return xhat, torch.full((len(x),), components, device=x.device)

    return reconstruct


def untrained(sample: Float[Tensor, "tokens d_in"], width: int, k: int, seed: int) -> Reconstruct:
    """Return a dictionary of random directions, k features a token, no step of training.

    Its output is multiplied by the one number that fits the sample best, without which the sum
    of overlapping directions would overshoot: a fairer and stronger baseline.
    """
    statistics = Statistics.of([sample])
    coder = TopK(sample.shape[1], width, k=k, seed=seed).to(sample.device).requires_grad_(False)
    coder.fold(statistics.mean, statistics.scale)
    mean = statistics.mean.to(sample)
    part = sample[:8192]
    drawn = coder(part) - mean
    gain = ((part - mean) * drawn).sum() / drawn.square().sum().clamp_min(1e-12)

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        code = coder.encode_sparse(x)
        return mean + gain * (coder.decode_sparse(code) - mean), code.l0

    return reconstruct


def raw_neurons(sample: Float[Tensor, "tokens d_in"], k: int) -> Reconstruct:
    """Return the activations with only the k coordinates farthest from their mean kept."""
    mean = sample.mean(0)

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        centred = x - mean
        kept = centred.abs().topk(k, dim=1).indices
        sparse = torch.zeros_like(centred).scatter(1, kept, centred.gather(1, kept))
        return mean + sparse, torch.full((len(x),), k, device=x.device)

    return reconstruct


def collect(batches: Iterable[Tensor], tokens: int) -> Float[Tensor, "tokens d_in"]:
    """Return the first `tokens` rows of a stream."""
    rows: list[Tensor] = []
    for x in batches:
        rows.append(x)
        if sum(map(len, rows)) >= tokens:
            break
    return torch.cat(rows)[:tokens]
