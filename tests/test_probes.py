"""Probes' formulas: known answers, and scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from monosemy.metrics import weighted_means
from monosemy.metrics.probes import (
    auroc,
    cross_entropy,
    f1_and_balanced_accuracy,
    fit_logistic,
    least_probe_loss,
    loss_bounds,
    placements,
    probe_losses,
    youden_threshold,
)


def data(tasks: int, n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tasks, n, k, generator=generator)
    noise = torch.randn(tasks, n, generator=generator)
    return x, x[:, :, 0] + 0.5 * x[:, :, -1] + noise > 0.3


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_logistic_regression_is_scikit_learns(c: float) -> None:
    x, y = data(5, 120, 8)
    there = torch.rand(5, 120) < 0.8
    weights, intercepts = fit_logistic(x, y, there, c)
    for task in range(5):
        rows = there[task]
        theirs = LogisticRegression(C=c, tol=1e-8, max_iter=1000)
        theirs.fit(x[task, rows].double().numpy(), y[task, rows].numpy())
        np.testing.assert_allclose(weights[task], theirs.coef_[0], atol=1e-4)
        assert intercepts[task].item() == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_a_separable_task_has_the_penaltys_solution() -> None:
    x = torch.linspace(-1, 1, 40)[None, :, None]
    y = x[:, :, 0] > 0
    weights, _ = fit_logistic(x, y, torch.ones_like(y))
    theirs = LogisticRegression(C=1, tol=1e-8).fit(x[0].double().numpy(), y[0].numpy())
    assert weights[0, 0].item() == pytest.approx(theirs.coef_[0, 0], abs=1e-4)


@given(scores=st.lists(st.integers(-3, 3), min_size=4, max_size=30), seed=st.integers(0, 99))
def test_auroc_is_scikit_learns_with_ties(scores: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).random(len(scores)) < 0.5
    labels[:2] = [True, False]
    found = auroc(np.array([scores], dtype=float), labels[None])
    assert found[0] == pytest.approx(roc_auc_score(labels, scores))


def test_auroc_of_known_orders() -> None:
    labels = np.array([[True, True, False, False]] * 3)
    scores = np.array([[3.0, 2, 1, 0], [0, 1, 2, 3], [1, 1, 1, 1]])
    assert auroc(scores, labels).tolist() == [1, 0, 0.5]


def test_the_mean_placement_of_either_kind_is_auroc() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, (4, 50)).astype(float), rng.random((4, 50)) < 0.4
    left_out = rng.random((4, 50)) < 0.2
    found = placements(scores, labels & ~left_out, ~labels & ~left_out)
    assert np.isnan(found[left_out]).all()
    for task in range(4):
        rows = ~left_out[task]
        theirs = roc_auc_score(labels[task, rows], scores[task, rows])
        for kind in (True, False):
            mine = found[task, rows & (labels[task] == kind)].mean()
            assert mine == pytest.approx(theirs)


def test_f1_and_balanced_accuracy_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, said = rng.random(80) < 0.3, rng.random(80) < 0.5
    counts = [(labels & said).sum(), (~labels & said).sum()]
    counts += [(labels & ~said).sum(), (~labels & ~said).sum()]
    f1, balanced = f1_and_balanced_accuracy(*np.array(counts)[:, None])
    assert f1 == pytest.approx(f1_score(labels, said))
    assert balanced == pytest.approx(balanced_accuracy_score(labels, said))


def test_the_threshold_has_the_best_balanced_accuracy() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, (6, 40)).astype(float)
    labels = scores + rng.normal(0, 4, (6, 40)) > 6
    there = rng.random((6, 40)) < 0.8
    found = youden_threshold(scores, labels & there, ~labels & there)
    for task in range(6):
        truth, s = labels[task, there[task]], scores[task, there[task]]
        of = {t: balanced_accuracy_score(truth, s > t) for t in np.arange(-0.5, 12, 0.5)}
        mine = balanced_accuracy_score(truth, s > found[task])
        assert mine == pytest.approx(max(of.values()))


# --- one feature alone ------------------------------------------------------------------------


def test_a_constant_feature_has_the_entropy_of_the_labels() -> None:
    y = torch.tensor([True, False] * 50)
    losses, lines = probe_losses(torch.full((3, 100), 7.0), y)
    assert losses.tolist() == pytest.approx([math.log(2)] * 3, abs=1e-6)
    assert lines.abs().max() < 1e-6
    rare = torch.arange(100) < 10
    losses, _ = probe_losses(torch.zeros(1, 100), rare)
    assert losses.item() == pytest.approx(-0.1 * math.log(0.1) - 0.9 * math.log(0.9), abs=1e-6)


@pytest.mark.parametrize("kind", ["normal", "heavy", "sparse", "shifted"])
def test_one_feature_is_scikit_learns(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(20, 300, generator=generator)
    y = a[0] + torch.randn(300, generator=generator) > 0.4
    a = {"normal": a, "heavy": a**5, "sparse": (a - 1).relu(), "shifted": 0.01 * a + 50}[kind]
    losses, lines = probe_losses(a, y)
    for i in range(20):
        scale = a[i].double().std()
        column = ((a[i].double() - a[i].double().mean()) / scale).numpy()[:, None]
        theirs = LogisticRegression(C=1e8, tol=1e-10, max_iter=5000).fit(column, y.numpy())
        p = theirs.predict_proba(column)[np.arange(300), y.int().numpy()]
        assert losses[i].item() == pytest.approx(-np.log(p).mean(), abs=1e-4)
    again = cross_entropy(lines, a, y.expand(20, -1)).mean(1)
    torch.testing.assert_close(again, losses, atol=1e-4, rtol=1e-3)


def test_a_feature_that_separates_does_not_diverge() -> None:
    y = torch.arange(100) < 50
    a = torch.stack([torch.where(y, 1.0, -1.0), torch.linspace(1, -1, 100), torch.zeros(100)])
    losses, lines = probe_losses(a, y)
    assert losses[:2].max() < 1e-2 and torch.isfinite(lines).all()
    assert losses[2].item() == pytest.approx(math.log(2), abs=1e-6)


def test_one_more_feature_can_only_lower_the_least_loss() -> None:
    a, y = torch.randn(30, 60), torch.rand(60) < 0.5
    losses, _ = probe_losses(a, y)
    least = losses.cummin(0).values
    for n in (1, 7, 30):
        assert probe_losses(a[:n], y)[0].min().item() == pytest.approx(least[n - 1].item())
    assert (losses <= math.log(2) + 1e-3).all()


@given(seed=st.integers(0, 999), rate=st.floats(0.1, 0.9), power=st.sampled_from([1, 3]))
@settings(max_examples=25)
def test_no_loss_is_below_its_bound_so_the_least_is_found(
    seed: int, rate: float, power: int
) -> None:
    torch.manual_seed(seed)
    a, y = torch.randn(200, 80) ** power, torch.rand(80) < rate
    y[:2] = torch.tensor([True, False])
    a[:20] += y * torch.randn(20, 1)
    losses, _ = probe_losses(a, y)
    assert (loss_bounds(a, y) <= losses + 1e-5).all()
    feature, least, line = least_probe_loss(a, y)
    assert least == pytest.approx(losses.min().item(), abs=1e-6)
    assert cross_entropy(line, a[feature], y).mean().item() == pytest.approx(least, abs=1e-4)


def test_weighted_means_leave_out_what_is_not_known() -> None:
    values = np.array([[1.0, 2.0, np.nan], [1.0, 2.0, 4.0]])
    assert weighted_means(values, np.array([[1.0, 1, 5], [2, 0, 1]])).tolist() == [1.5, 2.0]
