"""What a dictionary must beat: reconstructions that need no training of features."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.activations import Statistics
from monosemy.coders import Dictionary, SparseCoder, TopK

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Activations [tokens, d_in] -> what explains them, or a transcoder's target, [tokens, d_out],
and the numbers used for each token [tokens]."""

FIT_TOKENS, FIT_TOKENS_A_DIMENSION = 16_384, 32
"""Training tokens that baselines are fitted on: at least the one, and the other times d_in."""

RIDGE = 1e-4
"""Penalty of the linear map, in mean variances of its input: it keeps directions that a sample
hardly has from being fitted to noise, and changes nothing else."""


def of_dictionary(dictionary: Dictionary) -> Reconstruct:
    """Return the dictionary as a reconstruction."""
    return of_coder(dictionary.coder)


def of_coder(coder: SparseCoder) -> Reconstruct:
    """Return a coder as a reconstruction."""

    @torch.no_grad()
    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        out, code = coder.reconstruct(x)
        return out, code.l0

    return reconstruct


def constant(value: Float[Tensor, " d_out"]) -> Reconstruct:
    """Return the same activations for every token."""

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        return value.expand(len(x), -1), torch.zeros(len(x), device=x.device)

    return reconstruct


def pca(sample: Float[Tensor, "tokens d_in"], components: int) -> Reconstruct:
    """Return the projection on the first principal components of a training sample."""
    centre, _, basis = principal_axes(sample)
    basis = basis[:, :components]

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        xhat = centre + (x - centre) @ basis @ basis.T
        return xhat, torch.full((len(x),), components, device=x.device)

    return reconstruct


def principal_axes(
    sample: Float[Tensor, "tokens d_in"],
) -> tuple[Float[Tensor, " d_in"], Float[Tensor, " d_in"], Float[Tensor, "d_in d_in"]]:
    """Return the mean of a sample, its variances along its principal axes, and these as columns.

    The largest variance first; computed in double precision.
    """
    x = sample.cpu().double()
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    variances, axes = torch.linalg.eigh(covariance)
    return mean.to(sample), variances.flip(0).to(sample), axes.flip(1).to(sample)


@torch.no_grad()
def untrained_coder(
    sample: Float[Tensor, "tokens d_in"], width: int, k: int, seed: int
) -> SparseCoder:
    """Return a dictionary of random directions, k features a token, no step of training.

    Its directions have the one length that fits the sample best: at unit length the sum of
    overlapping directions would overshoot. A fairer and stronger baseline.
    """
    statistics = Statistics.of([sample])
    coder = TopK(sample.shape[1], width, k=k, seed=seed).to(sample.device).requires_grad_(False)
    coder.fold(statistics.mean, statistics.scale)
    part = sample[:8192]
    drawn, rest = coder(part) - coder.b_dec, part - coder.b_dec
    coder.W_dec.mul_((rest * drawn).sum() / drawn.square().sum().clamp_min(1e-12))
    return coder


def linear_maps(
    x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"], rank: int
) -> tuple[Reconstruct, Reconstruct]:
    """Return the linear map that predicts y from x best on a training sample, and that of a rank.

    Least squares with an intercept. The best map of a rank (reduced-rank regression) is the full
    one with its output projected on its own first principal components: what PCA is to a sparse
    autoencoder, this is to a transcoder.
    """
    left, right = x.cpu().double(), y.cpu().double()
    x_mean, y_mean = left.mean(0), right.mean(0)
    left, right = left - x_mean, right - y_mean
    covariance = left.T @ left
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-12)
    ridged = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype)
    full = torch.linalg.solve(ridged, left.T @ right)
    basis = torch.linalg.eigh(full.T @ covariance @ full).eigenvectors[:, -rank:]

    def mapping(weights: Tensor, used: int) -> Reconstruct:
        weights, x_centre, y_centre = weights.to(x), x_mean.to(x), y_mean.to(x)

        def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
            yhat = y_centre + (x - x_centre) @ weights
            return yhat, torch.full((len(x),), used, device=x.device)

        return reconstruct

    return mapping(full, x.shape[1]), mapping(full @ basis @ basis.T, rank)


@torch.no_grad()
def untrained_transcoder_coder(
    x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"], width: int, k: int, seed: int
) -> SparseCoder:
    """Return random features of x, k a token, that explain y as far as they do untrained.

    Random directions would predict nothing of y. Here each feature writes what it would write if
    it were alone, the least-squares direction of its activation on a training sample; the sum is
    multiplied by the one number that fits the sample best.
    """
    statistics, mean = Statistics.of([x]), y.mean(0)
    coder = TopK(x.shape[1], width, k=k, d_out=y.shape[1], seed=seed)
    coder.to(x.device).requires_grad_(False)
    coder.fold(statistics.mean, statistics.scale, mean, statistics.scale)
    sums, squares = x.new_zeros(width, y.shape[1]), x.new_zeros(width)
    codes = [coder.encode_sparse(part) for part in x.split(1024)]
    for code, part in zip(codes, (y - mean).split(1024), strict=True):
        sums.index_add_(0, code.indices, code.values[:, None] * part[code.tokens])
        squares.index_add_(0, code.indices, code.values.square())
    directions = sums / squares.clamp_min(1e-12)[:, None]
    drawn = torch.cat([code.decode(directions) for code in codes])
    centre = drawn.mean(0)
    gain = ((y - mean) * (drawn - centre)).sum() / (drawn - centre).square().sum().clamp_min(1e-12)
    coder.W_dec.copy_(gain * directions)
    coder.b_dec.copy_(mean - gain * centre)
    return coder


def raw_neurons(sample: Float[Tensor, "tokens d_in"], k: int) -> Reconstruct:
    """Return the activations with only the k coordinates farthest from their mean kept."""
    mean = sample.mean(0)

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        return mean + largest(x - mean, k), torch.full((len(x),), k, device=x.device)

    return reconstruct


def largest(z: Float[Tensor, "tokens n"], k: int) -> Float[Tensor, "tokens n"]:
    """Return each token's k numbers of largest magnitude, the others set to 0."""
    kept = z.abs().topk(k, dim=1).indices
    return torch.zeros_like(z).scatter(1, kept, z.gather(1, kept))


def collect(batches: Iterable[Tensor], tokens: int) -> Float[Tensor, "tokens d_in"]:
    """Return the first `tokens` rows of a stream."""
    rows: list[Tensor] = []
    for x in batches:
        rows.append(x)
        if sum(map(len, rows)) >= tokens:
            break
    return torch.cat(rows)[:tokens]
