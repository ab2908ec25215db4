"""Vectors as sums of few directions: known answers, what holds of every pursuit, and refusals."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosemy.errors import UserError
from monosemy.interpret.decompose import (
    CODES,
    ENCODER,
    NON_NEGATIVE,
    PURSUIT,
    RANDOM,
    SIGNED,
    decompose,
)
from monosemy.metrics.pursuit import (
    Combination,
    cosine_and_fvu,
    gradient_pursuit,
    gradient_pursuit_path,
    least_squares,
    matching_pursuit_path,
)
from monosemy.training import Run

EYE = torch.eye(3)
SLANTED = torch.tensor([[1.0, 0.0], [0.6, 0.8]])


def dense(found: Combination, n: int) -> list[float]:
    weights = torch.zeros(n)
    weights[found.chosen] = found.weights
    return pytest.approx(weights.tolist(), abs=1e-6)  # type: ignore[return-value]


@pytest.mark.parametrize(("steps", "wanted"), [(1, [3.0, 0, 0]), (2, [3, 2, 0]), (9, [3, 2, 0])])
def test_of_unit_vectors_gradient_pursuit_takes_the_largest_positive_entries(
    steps: int, wanted: list[float]
) -> None:
    v = torch.tensor([3.0, 2.0, -1.0])
    assert gradient_pursuit(v, EYE, steps).tolist() == pytest.approx(wanted)
    *_, last = gradient_pursuit_path(v, EYE, steps)
    assert wanted == dense(last, 3)


def test_gradient_pursuit_has_not_converged_and_least_squares_finishes_it() -> None:
    v = torch.ones(2)
    assert gradient_pursuit(v, SLANTED, 2).tolist() == pytest.approx([0.16, 1.4])
    *_, last = gradient_pursuit_path(v, SLANTED, 2)
    assert dense(last, 2) == [0.25, 1.25]


def test_what_points_the_other_way_has_no_non_negative_part_and_a_signed_one() -> None:
    directions = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    # Of unit directions at random some others point its way; of unit vectors none does.
    assert list(gradient_pursuit_path(-EYE[1], EYE, 3)) == []
    assert list(matching_pursuit_path(-EYE[1], EYE, 3, signed=False)) == []
    assert gradient_pursuit(-EYE[1], EYE, 3).tolist() == [0, 0, 0]
    first, *_ = matching_pursuit_path(-directions[3], directions, 3, signed=True)
    assert first.chosen.tolist() == [3] and first.weights.tolist() == pytest.approx([-1.0])


def paths(v: Tensor, directions: Tensor, most: int) -> dict[str, list[Combination]]:
    def taken(path: Iterable[Combination]) -> list[Combination]:
        return list(path)

    return {
        "gradient": taken(gradient_pursuit_path(v, directions, most)),
        "positive": taken(matching_pursuit_path(v, directions, most, signed=False)),
        "signed": taken(matching_pursuit_path(v, directions, most, signed=True)),
    }


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 24), st.integers(2, 10), st.integers(1, 8))
def test_every_path_gets_better_and_its_weights_are_optimal(
    seed: int, n: int, d: int, most: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    directions, v = torch.randn(n, d, generator=generator), torch.randn(d, generator=generator)
    for name, path in paths(v, directions, most).items():
        left = [float((v - found.vector(directions)).norm()) for found in path]
        assert all(b <= a + 1e-4 for a, b in itertools.pairwise(left)), name
        for found in path:
            assert len(found.chosen) <= most
            assert len({*found.chosen.tolist()}) == len(found.chosen)
            products = directions[found.chosen] @ (v - found.vector(directions))
            assert products.abs().max() < 1e-3, name  # the residual is orthogonal to all in use
            if name != "signed":
                assert (found.weights > 0).all()


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=30)
def test_orthogonal_directions_are_found_again(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    weights = torch.zeros(12)
    chosen = torch.randperm(12, generator=generator)[:k]
    weights[chosen] = torch.rand(k, generator=generator) + 0.5
    signs = torch.randint(0, 2, (12,), generator=generator) * 2.0 - 1
    for name, path in paths(weights @ directions, directions, k).items():
        assert dense(path[-1], 12) == weights.tolist(), name
    signed = paths((weights * signs) @ directions, directions, k)["signed"]
    assert [float(x) for x in signed[-1].weights] == pytest.approx(
        (weights * signs)[signed[-1].chosen].tolist(), abs=1e-5
    )


def test_least_squares_drops_what_has_no_weight() -> None:
    found = least_squares(torch.tensor([1.0, -1.0, 0.0]), EYE, [0, 1], signed=False)
    assert found.chosen.tolist() == [0]
    assert cosine_and_fvu(torch.ones(2), torch.zeros(2)) == (0.0, 1.0)
    assert cosine_and_fvu(torch.ones(2), torch.ones(2)) == pytest.approx((1.0, 0.0))


def test_a_feature_taken_away_is_what_only_signs_can_say(run: Run) -> None:
    d = run.dictionary
    feature = int(d.strength.argmax())
    codes = torch.zeros(d.width)
    codes[feature] = -2.0
    found = decompose(d, -2 * d.coder.W_dec[feature], 5.0, codes, sizes=(1, 4))
    for method in (SIGNED, CODES):
        one = found.rebuilt[method][1]
        assert one.features.chosen.tolist() == [feature], method
        assert one.features.weights.tolist() == pytest.approx([-2.0], abs=1e-4)
        assert one.cosine == pytest.approx(1) and one.fvu == pytest.approx(0, abs=1e-6)
    for method in (ENCODER, PURSUIT, NON_NEGATIVE):
        for rebuilt in found.rebuilt[method].values():
            assert (rebuilt.features.weights >= 0).all()
            assert rebuilt.fvu > 0.05, method
    assert found.negative == 1.0


def test_the_encoder_fires_on_nothing_at_all_and_that_is_said(run: Run) -> None:
    d = copy.deepcopy(run.dictionary)
    d.coder.b_enc[:3] += 10
    fired = d.encode(torch.zeros(1, d.d_in))[0] > 0
    v = torch.randn(d.d_in)
    found = decompose(d, v, 7.0, sizes=(3, 96))
    assert found.at_zero == int(fired.sum()) > 0
    z = d.encode((7 * v / v.norm())[None])[0]
    assert found.biased == pytest.approx(float(z[fired].sum() / z.sum()), abs=1e-6)
    whole = found.rebuilt[ENCODER][96]
    torch.testing.assert_close(whole.vector, z * v.norm() / 7 @ d.coder.W_dec)
    assert CODES not in found.rebuilt
    assert found.rebuilt[SIGNED][96].cosine > found.rebuilt[RANDOM][3].cosine


def test_figures_are_of_the_vector_that_is_given_back(run: Run) -> None:
    d = run.dictionary
    v = torch.randn(d.d_in)
    for rebuilt in decompose(d, v, 7.0, sizes=(1, 2, 8)).rebuilt.values():
        for size, part in rebuilt.items():
            assert len(part.features.chosen) <= size
            made = part.features.weights @ d.coder.W_dec[part.features.chosen]
            torch.testing.assert_close(part.vector, made)
            assert part.fvu == pytest.approx(float((v - made).square().sum() / v.square().sum()))


def test_what_cannot_be_decomposed_is_said(run: Run) -> None:
    d = run.dictionary
    with pytest.raises(UserError, match="33 numbers"):
        decompose(d, torch.ones(33), 1.0)
    with pytest.raises(UserError, match="zero"):
        decompose(d, torch.zeros(d.d_in), 1.0)
