from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosemy.activations.synthetic import GROUP_SIZE, SyntheticFeatures
from monosemy.errors import UserError

KINDS: dict[str, dict[str, float]] = {
    "uniform": {},
    "zipf": {"zipf": 1.0},
    "correlated": {"zipf": 0.7, "correlation": 0.6},
    "hierarchy": {"zipf": 1.0, "hierarchy": 0.5},
    "all": {"zipf": 1.0, "correlation": 0.6, "hierarchy": 0.5, "noise": 0.1},
}


def make(**changes: Any) -> SyntheticFeatures:
    return SyntheticFeatures(**({"d_in": 32, "n_features": 100, "l0": 5} | changes))


def standard_errors(found: Tensor, expected: Tensor, n: int) -> Tensor:
    return (found - expected) / (expected * (1 - expected) / n).sqrt()


@pytest.mark.parametrize("kind", KINDS)
def test_l0_and_every_frequency_are_as_asked(kind: str) -> None:
    data = make(**KINDS[kind])
    _, z = data.sample(40_000, seed=0)
    fires = z > 0
    assert data.frequencies.sum().item() == pytest.approx(5)
    assert fires.sum(1).double().mean().item() == pytest.approx(5, rel=0.02)
    errors = standard_errors(fires.double().mean(0), data.frequencies, 40_000)
    assert errors.abs().max() < 4.5  # the largest of 100
    assert errors.square().mean().item() == pytest.approx(1, abs=0.6)


@pytest.mark.parametrize("zipf", [0.0, 0.5, 1.0, 1.5])
def test_frequencies_follow_the_power_law(zipf: float) -> None:
    data = make(zipf=zipf, l0=2)
    f = data.frequencies
    assert torch.allclose(f[0] / f, torch.arange(1, 101).double() ** zipf)
    found = (data.sample(40_000, seed=0)[1] > 0).double().mean(0)[:30]
    rank = torch.arange(1, 31).double().log()
    centred = rank - rank.mean()
    slope = (centred * found.log()).sum() / centred.square().sum()
    assert slope.item() == pytest.approx(-zipf, abs=0.05)


def test_directions_are_unit_rows_and_make_x() -> None:
    data = make()
    x, z = data.sample(3000, seed=0)
    assert x.dtype == z.dtype == torch.float32
    assert torch.allclose(data.directions.norm(dim=1), torch.ones(100))
    assert torch.allclose(x, z @ data.directions, atol=1e-5)
    assert data.directions.mean().abs() < 0.02


def test_magnitudes() -> None:
    _, z = make().sample(40_000, seed=0)
    values = z[z != 0]
    assert values.min() >= 0.05 - 1e-6
    assert values.mean().item() == pytest.approx(1, abs=0.005)
    assert values.std().item() == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_a_child_fires_only_with_its_parent(correlation: float) -> None:
    data = make(zipf=1.0, hierarchy=0.7, correlation=correlation)
    children = (data.parents >= 0).nonzero()[:, 0]
    parents = data.parents[children]
    assert len(children) == 70
    assert (data.parents[parents] == -1).all()
    assert (2 * data.frequencies[children] <= data.frequencies[parents]).all()
    fires = data.sample(40_000, seed=0)[1] > 0
    assert fires[:, children].any(0).all()
    assert not (fires[:, children] & ~fires[:, parents]).any()
    assert (fires[:, parents] & ~fires[:, children]).any(0).all()


def test_the_example_in_the_docstring_is_possible() -> None:
    example = "SyntheticFeatures(d_in=64, n_features=512, l0=5, zipf=1.0)"
    assert example in (SyntheticFeatures.__doc__ or "")
    assert SyntheticFeatures(d_in=64, n_features=512, l0=5, zipf=1.0).frequencies[0] < 1


def test_without_hierarchy_there_are_no_parents() -> None:
    assert (make().parents == -1).all()


def test_children_of_one_parent_are_independent_where_it_fires() -> None:
    """The children fire on 1/4 and 1/9 of the tokens that their parent fires on."""
    data = make(n_features=3, l0=0.9, zipf=2.0, hierarchy=0.67)
    assert data.parents.tolist() == [-1, 0, 0]
    fires = data.sample(100_000, seed=0)[1] > 0
    given = fires[fires[:, 0]].double()
    both = (given[:, 1] * given[:, 2]).mean().item()
    assert both == pytest.approx(1 / 4 / 9, rel=0.1)


def pairs_together(data: SyntheticFeatures) -> tuple[float, float]:
    """Mean of P(both) / (P(i) P(j)) over pairs of the same group and over all others."""
    fires = (data.sample(60_000, seed=0)[1] > 0).float()
    expected = torch.outer(data.frequencies, data.frequencies)
    lift = fires.T @ fires / len(fires) / expected
    same = data.groups[:, None] == data.groups
    return (
        lift[same & ~torch.eye(len(same), dtype=torch.bool)].mean().item(),
        lift[~same].mean().item(),
    )


def test_correlated_pairs_fire_together() -> None:
    same, other = pairs_together(make(correlation=0.0))
    assert same == pytest.approx(1, abs=0.03)
    assert other == pytest.approx(1, abs=0.03)
    same_weak, other_weak = pairs_together(make(correlation=0.3))
    same_strong, other_strong = pairs_together(make(correlation=0.7))
    assert 1.5 < same_weak < same_strong
    assert other_weak == pytest.approx(1, abs=0.03)
    assert other_strong == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("correlation", [0.3, 0.8])
def test_the_copula_has_the_correlation_asked(correlation: float) -> None:
    """At frequency 1/2 the chance of firing together is known: 1/4 + asin(rho) / (2 pi)."""
    data = make(n_features=GROUP_SIZE, l0=GROUP_SIZE / 2, correlation=correlation)
    fires = (data.sample(60_000, seed=0)[1] > 0).float()
    both = (fires.T @ fires / len(fires))[~torch.eye(GROUP_SIZE, dtype=torch.bool)]
    expected = 1 / 4 + math.asin(correlation) / (2 * math.pi)
    assert both.mean().item() == pytest.approx(expected, abs=0.005)


def test_groups_keep_children_apart_from_others() -> None:
    data = make(zipf=1.0, hierarchy=0.5, correlation=0.5)
    child = data.parents >= 0
    assert not set(data.groups[child].tolist()) & set(data.groups[~child].tolist())
    sizes = torch.bincount(data.groups)
    assert sizes.sum() == 100
    assert 1 <= sizes.min() <= sizes.max() == GROUP_SIZE


def test_noise_is_relative_to_the_rms_and_leaves_the_rest_alone() -> None:
    clean, noisy = make(), make(noise=0.3)
    (x, z), (x_noisy, z_noisy) = clean.sample(20_000, seed=2), noisy.sample(20_000, seed=2)
    assert torch.equal(z, z_noisy)
    rms = x.square().mean().sqrt().item()
    assert clean.rms == noisy.rms == pytest.approx(rms, rel=0.02)
    noise = x_noisy - x
    assert noise.std(0) / rms == pytest.approx(torch.full((32,), 0.3).numpy(), rel=0.05)
    assert noise.mean(0).abs().max() < 0.05 * rms


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_data(kind: str) -> None:
    one, other = make(**KINDS[kind]), make(**KINDS[kind])
    assert one == other
    for a, b in zip(one.sample(1500, seed=3), other.sample(1500, seed=3), strict=True):
        assert torch.equal(a, b)
    for name in ("directions", "parents", "groups", "frequencies"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_other_seeds_give_other_data() -> None:
    data = make(zipf=1.0, hierarchy=0.5)
    other = make(zipf=1.0, hierarchy=0.5, seed=1)
    assert not torch.equal(data.sample(50, seed=0)[1], data.sample(50, seed=1)[1])
    assert not torch.equal(data.sample(50, seed=0)[1], other.sample(50, seed=0)[1])
    for name in ("directions", "parents", "groups"):
        assert not torch.equal(getattr(data, name), getattr(other, name))
    # Not only what fires by other parents: the numbers behind it are others too.
    assert not torch.equal(make().sample(50, seed=0)[1], make(seed=1).sample(50, seed=0)[1])


def test_other_seeds_give_other_noise() -> None:
    clean, noisy = make(), make(noise=1.0)
    first, second = (noisy.sample(50, seed)[0] - clean.sample(50, seed)[0] for seed in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)


def test_one_argument_does_not_redraw_what_another_decides() -> None:
    plain, full = make(zipf=1.0), make(**KINDS["all"])
    assert torch.equal(plain.directions, full.directions)


@settings(max_examples=20)
@given(size=st.integers(1, 2500), n=st.integers(1, 2500))
def test_how_it_is_cut_changes_nothing(size: int, n: int) -> None:
    data = make(d_in=8, n_features=20, l0=2, **KINDS["zipf"], noise=0.1, correlation=0.5)
    batches = list(islice(data.batches(size, seed=4), math.ceil(n / size)))
    assert {tuple(batch.shape) for batch in batches} == {(size, 8)}
    x, z = data.sample(n, seed=4)
    assert x.shape == (n, 8) and z.shape == (n, 20)
    assert torch.equal(torch.cat(batches)[:n], x)
    assert torch.equal(data.sample(2500, seed=4)[1][:n], z)


def test_batches_do_not_share_memory_that_is_served_again() -> None:
    data = make()
    batches = data.batches(100, seed=0)
    for batch in islice(batches, 12):
        batch.zero_()
    assert torch.equal(next(batches), data.sample(1300, seed=0)[0][1200:])


def test_features_that_always_fire_and_tokens_on_which_none_does() -> None:
    _, z = make(l0=100).sample(1000, seed=0)
    assert (z > 0).all()
    x, z = make(n_features=3, l0=1e-9).sample(1000, seed=0)
    assert not x.any() and not z.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": 0}, "d_in is 0.*1 and above"),
        ({"n_features": 0}, "n_features is 0"),
        ({"l0": 0}, "l0 is 0"),
        ({"l0": math.nan}, "l0 is nan"),
        ({"l0": 101}, "l0 is 101.*probability 1.01.*up to 100 "),
        ({"l0": 6, "zipf": 1.0}, r"l0 is 6.*probability 1\.157.*up to 5\.18738 .*zipf 1"),
        ({"zipf": -1}, "zipf is -1"),
        ({"zipf": math.inf}, "zipf is inf"),
        ({"correlation": 1}, "correlation is 1.*0 to below 1"),
        ({"correlation": -0.1}, "correlation is -0.1"),
        ({"hierarchy": 1}, "hierarchy is 1"),
        ({"hierarchy": 0.2}, "20 children, but only 0 of 100.*up to 0 at zipf 0"),
        ({"noise": -1}, "noise is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        make(**changes)


def test_impossible_samples_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="n_tokens is 0"):
        make().sample(0, seed=0)
    with pytest.raises(UserError, match="batch_size is 0"):
        make().batches(0, seed=0)
    with pytest.raises(UserError, match="seed is -2"):
        make().batches(10, seed=-2)
