"""Logistic probes of classes of unequal size, which weigh the same."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosemy.metrics.probes import fit_logistic


def fit_balanced(
    x: Float[Tensor, "*probes n d"], labels: Bool[Tensor, "probes n"]
) -> tuple[Float[Tensor, "probes d"], Float[Tensor, " probes"]]:
    """Fit a logistic regression for each label: `fit_logistic` on standardised columns.

    As scikit-learn's `LogisticRegression(class_weight="balanced")` after a `StandardScaler`;
    weights are returned for x as it is.

    Args:
        x: one matrix for all labels, or one each.
        labels: both classes in each.

    Returns:
        Weights and biases: the logit is <w, x> + b.
    """
    mean, std = x.mean(-2, keepdim=True), x.std(-2, correction=0, keepdim=True).clamp_min(1e-12)
    scaled = ((x - mean) / std).expand(len(labels), -1, -1)
    w, b = fit_logistic(scaled, labels, balance(labels))
    w = w / std[..., 0, :]
    return w, b - (w * mean[..., 0, :]).sum(-1)


def sparse_logistic(
    z: Float[Tensor, "n width"], labels: Bool[Tensor, "probes n"], l1: float, steps: int
) -> Float[Tensor, "probes width"]:
    """Return weights of logistic regressions with an L1 penalty, which chooses features.

    Proximal gradient steps with momentum (FISTA, Beck & Teboulle 2009) on the mean loss, its two
    classes weighing the same; the bias is free.

    Args:
        z: activations, of a size of about 1.
        labels: both classes in each.
        l1: on the sum of the weights' sizes.
        steps: of the descent.
    """
    n, target = len(z), labels.to(z)
    ones = torch.cat([z, z.new_ones(n, 1)], 1)
    weight = balance(labels) / n
    step = 1 / _curvature(ones, weight)[:, None]
    w = ones.new_zeros(len(labels), ones.shape[1])
    ahead, momentum = w, 1.0
    for _ in range(steps):
        slope = (weight * (torch.sigmoid(ahead @ ones.T) - target)) @ ones
        new = ahead - step * slope
        kept = new[:, :-1]
        new[:, :-1] = kept.sign() * (kept.abs() - step * l1).clamp_min(0)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / following * (new - w)
        w, momentum = new, following
    return w[:, :-1]


def balance(labels: Bool[Tensor, "probes n"]) -> Float[Tensor, "probes n"]:
    """Return weights by which both classes of each label weigh the same, 1 on the mean."""
    share = labels.float().mean(1, keepdim=True)
    return torch.where(labels, 0.5 / share, 0.5 / (1 - share))


def _curvature(
    x: Float[Tensor, "n d"], weight: Float[Tensor, "probes n"]
) -> Float[Tensor, " probes"]:
    """Return an upper bound of the logistic loss's second derivative, by power iteration."""
    v = x.new_ones(len(weight), x.shape[1])
    size = v.norm(dim=1)
    for _ in range(30):
        v = (weight * (v / size[:, None] @ x.T)) @ x
        size = v.norm(dim=1).clamp_min(1e-12)
    return 1.1 * size / 4
