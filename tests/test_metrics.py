from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosemy.evaluation.baselines import pca
from monosemy.metrics import (
    Activity,
    LossEffect,
    Reconstruction,
    bootstrap_weights,
    interval,
    reconstruction,
)


def figures(x: Tensor, xhat: Tensor, mean: Tensor | None = None) -> dict[str, float]:
    sums = Reconstruction(x.reshape(-1, x.shape[-1]).mean(0) if mean is None else mean)
    sums.update(x, xhat)
    return sums.compute()


def test_predicting_the_mean_has_fvu_one_and_perfect_reconstruction_zero() -> None:
    x = torch.randn(500, 7) + 30
    mean = x.mean(0).expand_as(x)
    assert figures(x, mean)["fvu"] == pytest.approx(1, abs=1e-6)
    perfect = figures(x, x)
    assert perfect["fvu"] == perfect["token_fvu"] == perfect["mse"] == 0
    assert perfect["cosine"] == pytest.approx(1)


def test_fvu_of_the_worked_examples() -> None:
    x = torch.tensor([[0.0, 0], [2, 0], [0, 10], [2, 10]])
    assert figures(x, x + torch.tensor([1.0, 0]))["fvu"] == pytest.approx(0.0384615, abs=1e-6)
    x = x + torch.tensor([1.0, 0])
    assert figures(x, x + torch.tensor([1.0, 0]))["fvu"] == pytest.approx(0.0384615, abs=1e-6)


def test_a_constant_offset_is_seen() -> None:
    x = torch.randn(100, 4)
    assert figures(x, x + 1)["fvu"] > 0.5


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(1, 199), max_size=6), seed=st.integers(0, 1000))
def test_cutting_into_batches_changes_nothing(cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 5, generator=generator) + 100
    xhat = x + 0.3 * torch.randn(200, 5, generator=generator)
    l0 = torch.randint(0, 9, (200,), generator=generator)
    whole, parts = Reconstruction(torch.full((5,), 99.0)), Reconstruction(torch.full((5,), 99.0))
    whole.update(x, xhat, l0)
    edges = [0, *sorted(set(cuts)), 200]
    for a, b in itertools.pairwise(edges):
        parts.update(x[a:b], xhat[a:b], l0[a:b])
    expected = whole.compute()
    assert parts.compute() == pytest.approx(expected, rel=1e-9)


def test_shape_changes_nothing() -> None:
    x, xhat = torch.randn(4, 6, 8), torch.randn(4, 6, 8)
    assert figures(x, xhat) == figures(x.reshape(24, 8), xhat.reshape(24, 8))


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_scaling_the_input_does_not_change_fvu(scale: float) -> None:
    x, xhat = torch.randn(300, 6), torch.randn(300, 6)
    one, other = figures(x, xhat), figures(x * scale, xhat * scale)
    for name in ("fvu", "token_fvu", "cosine"):
        assert other[name] == pytest.approx(one[name], rel=1e-4)
    assert other["mse"] == pytest.approx(one["mse"] * scale**2, rel=1e-4)


def test_fvu_survives_a_mean_far_from_zero() -> None:
    x = torch.randn(1000, 4, dtype=torch.float64)
    xhat = x + 0.1 * torch.randn(1000, 4, dtype=torch.float64)
    far = figures(x + 1e5, xhat + 1e5, torch.full((4,), 1e5))
    assert far["fvu"] == pytest.approx(figures(x, xhat)["fvu"], rel=1e-6)


def test_token_fvu_is_another_figure_than_fvu() -> None:
    x = torch.tensor([[1.0, 0], [-1, 0], [10, 0], [-10, 0]])
    xhat = x + torch.tensor([0.0, 1])
    found = figures(x, xhat)
    assert found["fvu"] == pytest.approx(4 / 202)
    assert found["token_fvu"] == pytest.approx((1 + 1 + 0.01 + 0.01) / 4)


def test_nothing_seen_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        Reconstruction(torch.zeros(3)).compute()


def test_interval_covers_and_pairs() -> None:
    """Means of groups: the interval of a known-noise mean has about the right width."""
    groups = torch.arange(100).repeat_interleave(10)
    x = torch.zeros(1000, 1)
    noise = torch.randn(100).repeat_interleave(10)[:, None]
    sums = Reconstruction(torch.ones(1))
    sums.update(x, x + noise, groups=groups)
    low, high = interval(sums.resample(bootstrap_weights(100, 2000)))["mse"]
    assert low < sums.compute()["mse"] < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(2 / 100), rel=0.35)


def test_activity_counts_firing_not_selection() -> None:
    activity = Activity(4)
    activity.update(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0, 1, 0]), tokens=2)
    assert activity.counts.tolist() == [2, 0, 0, 0]
    assert activity.density.tolist() == [1, 0, 0, 0]
    assert (activity.dead_share, activity.l0, activity.max[0].item()) == (0.75, 1.0, 3.0)


def effect(original: Tensor, replaced: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    targets = torch.randint(0, original.shape[-1], original.shape[:2])
    loss = LossEffect(list(replaced), ablations=["zero"])
    counted = torch.rand(original.shape[:2]) < 0.8
    loss.update(original, replaced.items(), targets, counted)
    return loss.compute()


def test_identity_recovers_everything_and_the_ablation_nothing() -> None:
    original, ablated = torch.randn(2, 9, 11), torch.randn(2, 9, 11) * 3
    found = effect(original, {"same": original.clone(), "zero": ablated})
    assert found["same"]["kl"] == pytest.approx(0, abs=1e-6)
    assert found["same"]["recovered_zero"] == pytest.approx(1)
    assert found["zero"]["recovered_zero"] == pytest.approx(0)
    assert found["zero"]["kl"] > 0


def test_kl_and_cross_entropy_equal_those_of_torch() -> None:
    p, q = torch.randn(1, 50, 7), torch.randn(1, 50, 7)
    targets = torch.randint(0, 7, (1, 50))
    loss = LossEffect(["q"])
    loss.update(p, [("q", q)], targets, torch.ones(1, 50, dtype=torch.bool))
    found = loss.compute()
    kl = torch.nn.functional.kl_div(
        q[0].log_softmax(-1), p[0].softmax(-1), reduction="batchmean"
    ).item()
    ce = torch.nn.functional.cross_entropy(q[0], targets[0]).item()
    assert found["q"]["kl"] == pytest.approx(kl, rel=1e-5)
    assert found["q"]["ce"] == pytest.approx(ce, rel=1e-5)


def test_bootstrap_weights_draw_as_many_groups_as_there_are() -> None:
    weights = bootstrap_weights(17, 50)
    assert weights.shape == (50, 17)
    assert np.all(weights.sum(1) == 17)


def test_half_the_reconstruction_has_ratio_and_bias_of_a_half() -> None:
    x = torch.randn(300, 6) + 4
    found = figures(x, x / 2, torch.zeros(6))
    assert found["cosine"] == pytest.approx(1)
    for name in ("l2_ratio", "relative_bias", "l2_ratio_centred", "relative_bias_centred"):
        assert found[name] == pytest.approx(0.5)
    assert figures(x, 2 * x)["relative_bias"] == pytest.approx(2)
    assert figures(x, x)["l2_ratio_centred"] == figures(x, x)["relative_bias"] == 1


def test_a_shared_mean_hides_shrinkage_until_it_is_taken_out() -> None:
    x = torch.randn(500, 6) + 20
    mean = x.mean(0)
    found = figures(x, mean + (x - mean) / 2)
    assert found["l2_ratio_centred"] == pytest.approx(0.5, abs=1e-4)
    assert found["relative_bias_centred"] == pytest.approx(0.5, abs=1e-4)
    assert found["l2_ratio"] > 0.99 and found["relative_bias"] > 0.99


def test_a_projection_has_no_bias_though_it_is_shorter() -> None:
    x = torch.randn(400, 8) @ torch.randn(8, 8) + 3
    reconstruction, _ = pca(x, 3)(x)
    found = figures(x, reconstruction)
    assert found["relative_bias_centred"] == pytest.approx(1, abs=1e-5)
    assert found["l2_ratio_centred"] < 0.95


@settings(max_examples=20)
@given(seed=st.integers(0, 100), size=st.sampled_from([35, 2**18]))
def test_agreement_is_that_of_double_precision(seed: int, size: int) -> None:
    """Products in single precision, sums in double: digits beyond the sixth may differ."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 5, generator=generator) + 3
    xhat = x + 0.5 * torch.randn(200, 5, generator=generator)
    groups = torch.randint(0, 9, (200,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "_CHUNK", size)
        sums = Reconstruction(x.mean(0))
        sums.update(x, xhat, groups=groups)
    a, b = x.double(), xhat.double()
    expected = {
        "fvu": (a - b).square().sum() / (a - a.mean(0)).square().sum(),
        "cosine": torch.nn.functional.cosine_similarity(a, b, dim=1).mean(),
        "l2_ratio": (b.norm(dim=1) / a.norm(dim=1)).mean(),
        "relative_bias": b.square().sum() / (a * b).sum(),
    }
    for name, value in expected.items():
        assert sums.compute()[name] == pytest.approx(value.item(), rel=1e-6)
    first = Reconstruction(x.mean(0))
    first.update(x[groups == 4], xhat[groups == 4])
    alone = sums.resample(np.eye(9)[4:5])
    assert alone["fvu"][0] == pytest.approx(first.compute()["fvu"], rel=1e-6)


def test_tokens_of_norm_zero_break_nothing() -> None:
    x = torch.zeros(4, 3)
    found = figures(x, torch.ones(4, 3))
    assert (found["l2_ratio"], found["cosine"]) == (0, 0)
