"""Probes, many tasks at once: logistic regression, thresholds, AUROC, loss of single numbers.

A task is a row: its examples, and which of them are there at all, since tasks differ in size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

RIDGE = 1e-6
"""Added to the curvature of 1-D fits, per example, so that flat ones have a step; the optimum is
that of plain logistic regression."""
_STEPS, _HALVINGS, _TOLERANCE = 50, 10, 1e-3
_STEPS_1D, _GAIN_1D = 20, 1e-6
_NEAR = 2.5
"""Standard deviations from the mean, beyond which examples are left out of a bound."""
_AT_ONCE = 64
"""Features fitted before the bounds of the others are looked at again."""
_CHUNK = 2**16
"""Numbers worked on together by 1-D fits: what a processor's cache holds."""


def fit_logistic(
    x: Float[Tensor, "tasks n k"],
    y: Bool[Tensor, "tasks n"],
    there: Bool[Tensor, "tasks n"] | Float[Tensor, "tasks n"],
    c: float = 1.0,
) -> tuple[Float[Tensor, "tasks k"], Float[Tensor, " tasks"]]:
    """Fit logistic regressions with an L2 penalty: weights and intercepts.

    They minimise |w|^2 / 2 + c * (sum of the examples' cross-entropies), the intercept free, as
    scikit-learn's `LogisticRegression(C=c)`, by Newton's method, a step halved as long as it does
    not lower the objective.

    Args:
        x: numbers of each example, of about unit size.
        y: labels; each task needs both.
        there: which examples are fitted to, or how much each weighs.
        c: weight of the data against the penalty.
    """
    some = torch.cat([x, torch.ones_like(x[:, :, :1])], 2)
    theta, left = x.new_zeros(len(x), some.shape[2]), torch.arange(len(x), device=x.device)
    label, weight = y.to(x), c * there.to(x)
    penalty = torch.ones_like(theta[0])
    penalty[-1] = 0

    def loss(theta: Tensor, z: Tensor) -> Tensor:
        data = weight * (F.softplus(z) - label * z)
        return data.sum(1) + (penalty * theta.square()).sum(1) / 2

    now, z = theta, torch.zeros_like(label)
    for _ in range(_STEPS):
        p = z.sigmoid()
        bent = (weight * p * (1 - p))[:, :, None] * some
        pulls = torch.cat([bent, (weight * (p - label))[:, :, None]], 2)
        sums = some.mT @ pulls
        gradient, hessian = sums[:, :, -1] + penalty * now, sums[:, :, :-1]
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        # An intercept alone may be flat, up to rounding.
        diagonal.add_(penalty + 1e-6 * (1 + diagonal.amax(1, keepdim=True)))
        # Not `solve`: MKL's LU of many matrices above 256 fails on several threads.
        factor = torch.linalg.cholesky(hessian)
        step = torch.cholesky_solve(gradient[:, :, None], factor)[:, :, 0]
        before = loss(now, z)
        for _ in range(_HALVINGS):
            after = (some @ (now - step)[:, :, None])[:, :, 0]
            worse = loss(now - step, after) > before * (1 + 1e-6)
            if not worse.any():
                break
            step[worse] /= 2
        now, z = now - step, after
        theta[left] = now
        going = step.abs().amax(1) > _TOLERANCE * (1 + now.abs().amax(1))
        if not going.any():
            break
        if going.sum() < len(left) / 2:
            left, some, now, z = left[going], some[going], now[going], z[going]
            label, weight = label[going], weight[going]
    return theta[:, :-1], theta[:, -1]


def youden_threshold(
    scores: Float[np.ndarray, "tasks n"],
    positive: Bool[np.ndarray, "tasks n"],
    negative: Bool[np.ndarray, "tasks n"],
) -> Float[np.ndarray, " tasks"]:
    """Return the threshold above which predictions are positive with the best balanced accuracy.

    Halfway between two scores; examples of neither kind do not count.
    """
    infinite = np.where(positive | negative, scores, np.inf)
    order = np.argsort(infinite, axis=1, kind="stable")
    ordered = np.take_along_axis(infinite, order, 1)
    below = [np.take_along_axis(kind, order, 1).cumsum(1) for kind in (positive, negative)]
    rate = [count / count[:, -1:].clip(1) for count in below]
    after = np.concatenate([ordered[:, 1:], np.full((len(ordered), 1), np.inf)], 1)
    gain = np.where(after > ordered, rate[1] - rate[0], -np.inf)
    best = gain.argmax(1)[:, None]
    lower, upper = (np.take_along_axis(a, best, 1)[:, 0] for a in (ordered, after))
    return np.where(np.isfinite(upper), (lower + upper) / 2, lower)


def placements(
    scores: Float[np.ndarray, "tasks n"],
    positive: Bool[np.ndarray, "tasks n"],
    negative: Bool[np.ndarray, "tasks n"],
) -> Float[np.ndarray, "tasks n"]:
    """Return for each example the share of those of the other kind it is ordered rightly against.

    Ties count half. AUROC is the mean over positive examples, and that over negative ones; what
    varies about it are these numbers (DeLong et al. 1988). NaN for examples of neither kind, and
    where there is none of the other.
    """
    order = np.argsort(scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, 1)
    new = np.ones_like(ordered, dtype=bool)
    new[:, 1:] = ordered[:, 1:] > ordered[:, :-1]
    n = scores.shape[1]
    place = np.arange(n)
    first = np.maximum.accumulate(np.where(new, place, 0), 1)
    ends = np.where(np.roll(new, -1, 1) | (place == n - 1), place + 1, n)
    last = np.minimum.accumulate(ends[:, ::-1], 1)[:, ::-1]
    shares = []
    for kind in (negative, positive):
        counts = np.zeros((len(scores), n + 1))
        counts[:, 1:] = np.take_along_axis(kind, order, 1).cumsum(1)
        twice = np.take_along_axis(counts, first, 1) + np.take_along_axis(counts, last, 1)
        total = counts[:, -1:]
        shares.append(np.divide(twice / 2, total, out=np.full_like(twice, np.nan), where=total > 0))
    found = np.full(scores.shape, np.nan)
    np.put_along_axis(found, order, shares[0], 1)
    above = np.full(scores.shape, np.nan)
    np.put_along_axis(above, order, 1 - shares[1], 1)
    return np.where(positive, found, np.where(negative, above, np.nan))


def auroc(
    scores: Float[np.ndarray, "tasks n"], labels: Bool[np.ndarray, "tasks n"]
) -> Float[np.ndarray, " tasks"]:
    """Return the chance that a positive example scores above a negative one, ties counted half."""
    return np.where(labels, placements(scores, labels, ~labels), 0).sum(1) / labels.sum(1)


def f1_and_balanced_accuracy(
    tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return F1 = 2 tp / (2 tp + fp + fn) and the mean of both recalls; NaN without examples."""
    with np.errstate(invalid="ignore"):
        return 2 * tp / (2 * tp + fp + fn), (tp / (tp + fn) + tn / (tn + fp)) / 2


def probe_losses(
    a: Float[Tensor, "features n"], y: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, " features"], Float[Tensor, "features 2"]]:
    """Fit a logistic regression to each feature alone: cross-entropies, and slopes and intercepts.

    p = sigmoid(w a + b) by Newton's method, which is a 2 x 2 solution in closed form; at most 20
    steps, halved where they do not lower the loss, so that a feature that separates the labels
    ends near 0. A constant feature has the entropy of the labels. (Gao et al. 2024, arXiv
    2406.04093, section 4.2.)

    Args:
        a: pre-activations.
        y: labels, of both kinds.

    Returns:
        Mean cross-entropy of the examples fitted to, in nats; w and b, for `a` as it is.
    """
    parts = a.split(max(_CHUNK // a.shape[1], 1))
    losses, lines = zip(*(_fit_lines(part, y.to(a)) for part in parts), strict=True)
    return torch.cat(losses), torch.cat(lines)


def _fit_lines(a: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    mean, rate = a.mean(1, keepdim=True), y.mean()
    scale = a.std(1, keepdim=True, correction=0)
    flat = scale <= 1e-6 * mean.abs() + 1e-30
    a = torch.where(flat, 0, (a - mean) / scale.where(~flat, 1))
    # Where both kinds are Gaussians of equal variance this is the optimum already.
    apart = (a @ y) / y.sum() - (a @ (1 - y)) / (1 - y).sum()
    w = apart / (1 - rate * (1 - rate) * apart.square()).clamp_min(0.1)
    b = torch.full_like(w, torch.logit(rate).item())
    theta = torch.stack([w, b - w * apart * (0.5 - rate)], 1)
    best, loss = theta.clone(), torch.full_like(b, math.inf)
    step, gain = torch.zeros_like(theta), torch.zeros_like(b)
    left, some = torch.arange(len(a), device=a.device), a
    for _ in range(_STEPS_1D):
        at = theta[left]
        z = torch.addcmul(at[:, 1:], at[:, :1], some)
        p = z.sigmoid()
        value = F.softplus(z).mean(1) - (z @ y) / len(y)
        residual, curvature = p - y, p * (1 - p)
        weighted = curvature * some
        gw, gb = (residual * some).mean(1), residual.mean(1)
        hww, hwb, hbb = (
            (weighted * some).mean(1) + RIDGE,
            weighted.mean(1),
            curvature.mean(1) + RIDGE,
        )
        determinant = (hww * hbb - hwb.square()).clamp_min(1e-20)
        newton = torch.stack([hbb * gw - hwb * gb, hww * gb - hwb * gw], 1) / determinant[:, None]
        better = value < loss[left]
        loss[left] = torch.where(better, value, loss[left])
        best[left] = torch.where(better[:, None], at, best[left])
        step[left] = torch.where(better[:, None], newton, step[left] / 2)
        gain[left] = torch.where(better, newton[:, 0] * gw + newton[:, 1] * gb, gain[left] / 2)
        theta[left] = best[left] - step[left]
        going = gain[left] > _GAIN_1D
        if not going.any():
            break
        if going.sum() < len(left) / 2:
            left, some = left[going], some[going]
    none = loss > _entropy(rate)
    loss = loss.clamp_max(_entropy(rate))
    best = torch.where(none[:, None], torch.stack([torch.zeros_like(b), b], 1), best)
    w = best[:, 0] / scale[:, 0].where(~flat[:, 0], 1)
    return loss, torch.stack([w, best[:, 1] - w * mean[:, 0]], 1)


def _entropy(rate: Tensor) -> float:
    p = rate.item()
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def loss_bounds(
    a: Float[Tensor, "features n"], y: Bool[Tensor, " n"]
) -> Float[Tensor, " features"]:
    """Return what no logistic regression on a feature alone can have a lower cross-entropy than.

    The fit's dual: any p in [0, 1] with sum (p - y) = 0 and sum (p - y) a = 0 has an entropy below
    the least cross-entropy. The values of the least-squares line are such p where they all lie in
    [0, 1], and there H(p) >= 4 ln 2 p (1 - p), whose mean is 4 ln 2 v (1 - r^2), v the labels'
    variance and r the correlation. Where some lie outside, examples more than 2.5 standard
    deviations from the mean are left out: that can only lower the sum. Elsewhere the bound is 0.
    """
    values = y.to(a)
    z = a - a.mean(1, keepdim=True)
    z *= 1 / z.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
    bounds = _line_bounds(z, z.new_tensor(len(y)), values.sum(), values)
    outside = (bounds == 0).nonzero()[:, 0]
    near = z[outside].abs() <= _NEAR
    bounds[outside] = _line_bounds(z[outside] * near, near.sum(1), near.to(z) @ values, values)
    return bounds


def _line_bounds(z: Tensor, count: Tensor, true: Tensor, y: Tensor) -> Tensor:
    """Return bounds from least-squares lines; z is 0 at examples left out of count and true."""
    mean, rate = z.sum(1) / count, true / count
    variance, spread = rate * (1 - rate), z.square().sum(1) / count - mean.square()
    slope = (z @ y / count - rate * mean) / spread.clamp_min(1e-12)
    ends = torch.stack(torch.aminmax(z, dim=1), 1) - mean[:, None]
    line = rate[..., None] + slope[:, None] * ends
    unexplained = variance - slope.square() * spread
    bound = 4 * math.log(2) * unexplained * count / len(y)
    return torch.where(((line >= 0) & (line <= 1)).all(1), bound, 0)


def least_probe_loss(
    a: Float[Tensor, "features n"], y: Bool[Tensor, " n"]
) -> tuple[int, float, Float[Tensor, " 2"]]:
    """Return the feature with the least of `probe_losses`, that loss, and its w and b.

    Features whose bound (`loss_bounds`) lies above a loss already found are not fitted.
    """
    bounds = loss_bounds(a, y)
    order = bounds.argsort(stable=True)
    best: tuple[int, float, Tensor] = (0, math.inf, a.new_zeros(2))
    for some in order.split(_AT_ONCE):
        some = some[bounds[some] < best[1]]
        if not len(some):
            break
        losses, lines = probe_losses(a[some], y)
        i = int(losses.argmin())
        if losses[i] < best[1]:
            best = int(some[i]), float(losses[i]), lines[i]
    return best


def cross_entropy(
    lines: Float[Tensor, "*some 2"], a: Float[Tensor, "*some n"], y: Bool[Tensor, "*some n"]
) -> Float[Tensor, "*some n"]:
    """Return each example's cross-entropy, in nats, under p = sigmoid(w a + b)."""
    z = lines[..., :1] * a + lines[..., 1:]
    return F.softplus(torch.where(y, -z, z))
