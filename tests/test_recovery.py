from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score

from monosemy.activations.synthetic import SyntheticFeatures
from monosemy.metrics import recovery
from monosemy.metrics.recovery import mean_max_cosine, recovery_f1


def test_found_directions_have_cosine_one() -> None:
    truth = torch.randn(512, 64)
    assert mean_max_cosine(truth, truth) == pytest.approx(1)
    order, scale = torch.randperm(512), torch.rand(512, 1) + 0.1
    more = torch.cat([torch.randn(100, 64), (truth * scale)[order], torch.zeros(3, 64)])
    assert mean_max_cosine(more, truth) == pytest.approx(1)


def test_random_directions_have_a_known_cosine() -> None:
    assert mean_max_cosine(torch.randn(512, 64), torch.randn(512, 64)) == pytest.approx(
        0.368, abs=0.005
    )


def test_max_cosine_is_not_one_to_one() -> None:
    """Cosines [[.9, .8], [.85, .1]]: the first learned direction is the best for both.

    One to one, it would be (.8 + .85) / 2 = .825.
    """
    cosines = torch.tensor([[0.9, 0.8], [0.85, 0.1]])
    learned = torch.tensor([[1.0, 0, 0, 0], [0.6, 0.8, 0, 0]])
    # Each true direction: its part in the plane of the learned ones, then a dimension of its own.
    truth = torch.zeros(2, 4)
    truth[:, :2] = torch.linalg.solve(learned[:, :2], cosines.T).T
    truth[[0, 1], [2, 3]] = (1 - truth.square().sum(1)).sqrt()
    assert torch.allclose(truth @ learned.T, cosines)
    assert mean_max_cosine(learned, truth) == pytest.approx(0.875)


def test_cosine_is_signed_and_zero_for_zero_rows() -> None:
    truth = torch.eye(3)
    assert mean_max_cosine(-truth[:1], truth[:1]) == pytest.approx(-1)
    assert mean_max_cosine(torch.zeros(2, 3), truth) == 0
    assert mean_max_cosine(truth[:1], truth) == pytest.approx(1 / 3)
    assert mean_max_cosine(truth, truth[:1]) == pytest.approx(1)


def test_half_precision_is_taken() -> None:
    truth = torch.randn(50, 64)
    assert mean_max_cosine(truth.bfloat16(), truth) == pytest.approx(1, abs=1e-4)


def test_no_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="0 learned and 3 true"):
        mean_max_cosine(torch.zeros(0, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="3 learned and 0 true"):
        mean_max_cosine(torch.zeros(3, 2), torch.zeros(0, 2))


def test_f1_of_the_same_or_permuted_features_is_one() -> None:
    _, z = SyntheticFeatures(d_in=8, n_features=50, l0=4).sample(5000, seed=0)
    assert recovery_f1(z, z) == 1
    assert recovery_f1(3 * z[:, torch.randperm(50)], z) == 1


def test_f1_of_a_worked_example() -> None:
    true = torch.tensor([[1.0, 0, 2], [1, 0, 0], [0, 0, 0], [0, 0, 3]])
    learned = torch.tensor([[1.0, 0], [0, -1], [1, 5], [0, 0]])
    # First true feature: 1 hit, fires on 2, learned 0 fires on 2: 2/4; learned 1 never hits.
    # The second never fires and does not count; the third: 1 hit of 2 and 2: 2/4.
    assert recovery_f1(learned, true) == pytest.approx(0.5)
    always = torch.ones(4, 1)
    assert recovery_f1(always, true) == pytest.approx(2 * 0.5 / 1.5)


def test_f1_agrees_with_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "CHUNK", 64)
    true = torch.randn(300, 5) - 0.7
    learned = torch.cat([torch.randn(300, 4), true + torch.randn(300, 5)], 1)
    expected = [
        max(f1_score(true[:, i] > 0, learned[:, j] > 0) for j in range(9)) for i in range(5)
    ]
    assert recovery_f1(learned, true) == pytest.approx(sum(expected) / 5)


def test_cosine_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, truth = torch.randn(30, 8), torch.randn(45, 8)
    whole = mean_max_cosine(learned, truth)
    monkeypatch.setattr(recovery, "CHUNK", 7)
    assert mean_max_cosine(learned, truth) == pytest.approx(whole)


def test_dead_learned_features_do_no_harm() -> None:
    _, z = SyntheticFeatures(d_in=8, n_features=50, l0=4).sample(2000, seed=0)
    assert recovery_f1(torch.cat([torch.zeros(2000, 7), z], 1), z) == 1


def test_f1_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 true features fire"):
        recovery_f1(torch.ones(4, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="0 learned features"):
        recovery_f1(torch.ones(4, 0), torch.ones(4, 3))
    with pytest.raises(ValueError, match="0 true features fire"):
        recovery_f1(torch.ones(0, 2), torch.ones(0, 3))
