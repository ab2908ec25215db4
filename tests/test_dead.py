"""What counts as dead, and the ways back: who is reached, and by how much."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_coders import WIDTH, D, K, build, exact, gradients, known_features, own_options
from torch import Tensor

from monosemy.coders import ARCHITECTURES, SparseCoder, make_coder
from monosemy.coders.coder import TrainingCode
from monosemy.coders.select import Scorer
from monosemy.coders.support import DenseSupport, SparseSupport
from monosemy.errors import UserError
from monosemy.training import Member
from monosemy.training.dead import (
    auxk_loss,
    check_revival,
    fired,
    ghost_loss,
    resample,
)

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def some_dead(n_live: int = 30) -> Tensor:
    dead = torch.ones(WIDTH, dtype=torch.bool)
    dead[:n_live] = False
    return dead


# Counting ---------------------------------------------------------------------------------------


def test_winners_of_value_zero_have_not_fired() -> None:
    support = SparseSupport.from_rows(torch.tensor([[0, 2], [2, 3]]), 5)
    values = torch.tensor([0.0, 1.0, 0.5, -0.0])
    code = TrainingCode(values, values, support)
    assert fired(code).tolist() == [False, False, True, False, False]
    dense = TrainingCode(support.dense(values), support.dense(values), DenseSupport(2, 5))
    assert torch.equal(fired(dense), fired(code))


def test_of_k_winners_only_positive_ones_fire() -> None:
    """k = 2, pre-activations -1, -2, 0.5: only the last fires."""
    coder = make_coder("topk", 1, 3, k=2)
    with torch.no_grad():
        coder.W_enc.zero_()
        coder.b_enc.copy_(torch.tensor([-1.0, -2.0, 0.5]))
    code = coder.encode_training(torch.zeros(1, 1), exact())
    assert fired(code).tolist() == [False, False, True]


def test_nothing_fires_in_an_empty_batch() -> None:
    for support in (SparseSupport.from_rows(torch.zeros(0, 2).long(), 5), DenseSupport(0, 5)):
        values = torch.zeros(0, 5) if isinstance(support, DenseSupport) else torch.zeros(0)
        assert not fired(TrainingCode(values, values, support)).any()


def test_dead_is_counted_in_tokens() -> None:
    coder = make_coder("topk", 16, 48, k=3)
    with torch.no_grad():
        coder.b_enc[20:] = -100
    trained = Member(coder, lr=1e-3, steps=100, dead_after=1000)
    shares = [trained.step(known_features(n)).dead_share for n in (400, 600, 1, 300)]
    assert shares[:2] == [0, 0]  # 1,000 tokens: not yet more than `dead_after`
    assert shares[2] >= 28 / 48
    assert trained.tokens_since_fired[20:].tolist() == [1301] * 28
    alive = trained.tokens_since_fired[:20] == 0
    assert alive.sum() > 10


# AuxK -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "tied", "transcoder"])
@every_architecture
def test_auxk_reaches_encoder_and_decoder_of_dead_features_only(
    architecture: str, variant: str
) -> None:
    coder, x = build(architecture, variant), torch.randn(64, D)
    with torch.no_grad():
        coder.b_enc.zero_()
    left = torch.randn(64, coder.d_out, requires_grad=True)
    loss = auxk_loss(coder, x, left, some_dead(), 64 * K)
    found = gradients(coder, loss)
    for name in {"W_enc", "W_dec", "b_enc"} & found.keys():
        assert (found[name][:30] == 0).all(), name
        assert (found[name][30:].reshape(10, -1) != 0).any(1).all(), name
    for name in found.keys() - {"W_enc", "W_dec", "b_enc"}:
        assert (found[name] == 0).all(), name
    assert torch.autograd.grad(loss, left, allow_unused=True) == (None,)  # a constant


def test_auxk_gradient_equals_finite_differences() -> None:
    coder = build("topk", dtype=torch.float64)
    x, left = (torch.randn(64, D, dtype=torch.float64) for _ in range(2))
    found = gradients(coder, auxk_loss(coder, x, left, some_dead(), 64 * K))
    for name in ("W_enc", "b_enc", "W_dec"):
        parameter = dict(coder.named_parameters())[name]
        direction = torch.randn_like(parameter)
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                parameter.add_(step * direction)
                values.append(auxk_loss(coder, x, left, some_dead(), 64 * K).item())
        slope = (values[0] - values[1]) / 2e-6
        assert (found[name] * direction).sum().item() == pytest.approx(slope, rel=1e-5)


def test_auxk_of_predicting_nothing_is_one() -> None:
    coder = build("topk")
    with torch.no_grad():
        coder.b_enc[30:] = -100
    left = torch.randn(64, D)
    left -= left.mean(0)
    loss = auxk_loss(coder, torch.randn(64, D), left, some_dead(), 64 * K)
    assert loss.item() == pytest.approx(1)


def test_auxk_of_predicting_everything_is_zero() -> None:
    """What is left over lies in the cone of dead directions, with just their codes."""
    coder = build("topk", dtype=torch.float64)
    x = torch.randn(64, D, dtype=torch.float64)
    pre = x @ coder.W_enc[30:].T + coder.b_enc[30:]
    best = torch.zeros_like(pre).scatter(1, pre.topk(6).indices, 1.0)  # half of d_in
    left = (pre.relu() * best) @ coder.W_dec[30:]
    loss = auxk_loss(coder, x, left.detach(), some_dead(), 64 * D)
    assert loss.item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(("tokens", "entries"), [(1, 10), (0, 10), (200, 0), (200, 6 * 100)])
def test_auxk_costs_no_more_than_the_code_and_is_never_nan(tokens: int, entries: int) -> None:
    coder = build("topk")
    x, left = torch.randn(tokens, D), torch.randn(tokens, D)
    loss = auxk_loss(coder, x, left, some_dead(), entries)
    seen = min(max(entries // 6, 64), tokens)
    again = auxk_loss(coder, x[:seen], left[:seen], some_dead(), 10**9)
    assert loss.isfinite()
    assert loss == again
    if tokens < 2:
        assert loss == 0  # there is nothing to compare with
    assert auxk_loss(coder, x, torch.zeros(tokens, D), some_dead(), entries) == 0
    found = gradients(coder, loss)
    assert all(g.isfinite().all() for g in found.values())


def test_auxk_brings_features_back() -> None:
    """More than half of the features start where nothing is; AuxK brings many to use."""
    shares = {}
    for revival in ("auxk", "none"):
        torch.manual_seed(0)
        coder = make_coder("topk", 16, 48, k=3)
        with torch.no_grad():
            coder.b_enc[20:] = -3
        trained = Member(coder, lr=5e-3, steps=90, dead_after=2000, revival=revival)
        shares[revival] = [trained.step(known_features(256)).dead_share for _ in range(90)]
        assert shares[revival][6] == 0.0  # 1,792 tokens: too early to call any dead
        assert shares[revival][9] > 0.35
    assert shares["auxk"][-1] < 0.7 * shares["none"][-1]


# Ghost gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "transcoder"])
def test_ghost_loss_is_the_squared_error_and_reaches_dead_features_only(variant: str) -> None:
    coder, x = build("relu", variant), torch.randn(64, D)
    left = torch.randn(64, coder.d_out, requires_grad=True)
    loss = ghost_loss(coder, x, left, some_dead(), 10**6)
    error = left.detach().square().sum(1).mean() / coder.d_out
    assert loss.item() == pytest.approx(error.item())
    found = gradients(coder, loss)
    for name in ("W_enc", "W_dec", "b_enc"):
        assert (found[name][:30] == 0).all(), name
        assert (found[name][30:].reshape(10, -1) != 0).any(1).all(), name
    assert (found["b_dec"] == 0).all()
    assert torch.autograd.grad(loss, left, allow_unused=True) == (None,)


def test_ghosts_have_half_the_norm_of_what_is_left() -> None:
    """One dead feature, so that its ghost points along its direction: the loss is known."""
    coder = build("relu", dtype=torch.float64)
    x, left = (torch.randn(64, D, dtype=torch.float64) for _ in range(2))
    dead = some_dead(WIDTH - 1)
    loss = ghost_loss(coder, x, left, dead, 10**6)
    (gradient,) = torch.autograd.grad(loss, coder.b_enc)
    norm = left.norm(dim=1)
    along = left @ coder.W_dec[-1].detach()
    wrong = 1.25 * norm.square() - norm * along  # |e - g|^2 with |g| = |e| / 2
    slope = 2 * (norm.square() / 4 - norm / 2 * along)  # its derivative by log g
    expected = slope.mean() * (norm.square().mean() / wrong.mean()) / D
    assert gradient[-1].item() == pytest.approx(expected.item())


def test_ghost_loss_survives_huge_pre_activations() -> None:
    coder = build("relu")
    with torch.no_grad():
        coder.b_enc[30:] = 1000
    loss = ghost_loss(coder, torch.randn(4, D), torch.randn(4, D), some_dead(), 100)
    assert all(g.isfinite().all() for g in gradients(coder, loss).values())


# Resampling -------------------------------------------------------------------------------------


def resampled(
    architecture: str, tokens: int = 200, **options: Any
) -> tuple[SparseCoder, SparseCoder, Member, Tensor, Tensor]:
    """A coder before and after its dead features are made anew, and the batch they are from."""
    coder = build(architecture, **options)
    trained = Member(coder, lr=1e-3, steps=100, dead_after=10**9, weight=0.1)
    trained.step(torch.randn(64, D))
    before = build(architecture, **options)
    before.load_state_dict(coder.state_dict())
    x, left = torch.randn(tokens, D), torch.randn(tokens, coder.d_out)
    generator = torch.Generator().manual_seed(3)
    resample(coder, trained.optimizer, x, left, some_dead(), generator)
    return before, coder, trained, x, left


@every_architecture
def test_resampled_features_are_as_published(architecture: str) -> None:
    before, after, trained, x, left = resampled(architecture)
    new = slice(30, None)
    torch.testing.assert_close(after.W_dec[new].norm(dim=1), torch.ones(10))
    live = before.W_enc[:30].norm(dim=1).mean()
    torch.testing.assert_close(after.W_enc[new].norm(dim=1), (0.2 * live).expand(10))
    assert (after.b_enc[new] == 0).all()
    found = torch.nn.functional.normalize(left, dim=1)
    if architecture == "nonnegative":
        assert (after.W_dec >= 0).all()
        found = torch.nn.functional.normalize(left.relu(), dim=1)
    closeness, tokens = (after.W_dec[new] @ found.T).max(1)
    assert closeness.min() > 0.999
    assert len(tokens.unique()) == 10  # each token at most once
    rows = torch.nn.functional.normalize(after.W_enc[new], dim=1)
    inputs = torch.nn.functional.normalize(x[tokens], dim=1)
    assert (rows * inputs).sum(1).min() > 0.999
    for name, parameter in after.named_parameters():
        old = dict(before.named_parameters())[name]
        state = trained.optimizer.state[parameter]
        per_feature = parameter.shape[0] == WIDTH
        torch.testing.assert_close(parameter[:30], old[:30], msg=name)
        for moment in ("exp_avg", "exp_avg_sq"):
            if per_feature:
                assert (state[moment][new] == 0).all(), name
            assert (state[moment][:30] != 0).any(), name
        if per_feature and parameter.ndim == 1 and name != "b_enc":
            torch.testing.assert_close(parameter[new], old[:30].mean().expand(10), msg=name)


@every_architecture
def test_live_features_do_as_before(architecture: str) -> None:
    before, after, _, x, _ = resampled(architecture)
    with torch.no_grad():
        for coder in (before, after):
            coder.b_enc[30:] = -100  # resampled ones are silent
    torch.testing.assert_close(after(x), before(x))


def test_tokens_are_drawn_by_the_square_of_their_loss() -> None:
    counts = torch.zeros(2)
    left = torch.zeros(2, D)
    left[0, 0], left[1, 1] = 1.0, math.sqrt(2)  # losses 1 and 2, chances 1 to 4
    generator = torch.Generator().manual_seed(0)
    coder = build("topk")
    optimizer = torch.optim.Adam(coder.parameters())
    for _ in range(500):
        resample(coder, optimizer, torch.randn(2, D), left, some_dead(WIDTH - 1), generator)
        counts += coder.W_dec[-1, :2].detach().round()
    assert counts[1] / 500 == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_more_dead_features_than_tokens_to_make_them_from(tokens: int) -> None:
    before, after, _, _, _ = resampled("topk", tokens)
    changed = (before.W_dec - after.W_dec).norm(dim=1) > 1e-3
    assert changed.nonzero().squeeze(1).tolist() == list(range(30, 30 + tokens))


def test_tokens_explained_exactly_are_not_drawn() -> None:
    coder = build("topk")
    optimizer = torch.optim.Adam(coder.parameters())
    left = torch.zeros(50, D)
    left[7] = 1e-3
    generator = torch.Generator().manual_seed(0)
    assert resample(coder, optimizer, torch.randn(50, D), left, some_dead(), generator) == 1
    everything = torch.ones(WIDTH, dtype=torch.bool)
    assert resample(coder, optimizer, torch.randn(50, D), left, everything, generator) == 0
    assert resample(coder, optimizer, torch.randn(50, D), left, ~everything, generator) == 0


def test_resampling_a_tied_coder_changes_one_matrix() -> None:
    coder = build("topk", "tied")
    optimizer = torch.optim.Adam(coder.parameters())
    generator = torch.Generator().manual_seed(0)
    resample(coder, optimizer, torch.randn(50, D), torch.randn(50, D), some_dead(), generator)
    assert coder.W_enc is coder.W_dec
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones(WIDTH))


def test_a_member_resamples_four_times_in_two_thirds_of_its_run() -> None:
    coder = make_coder("relu", 16, 48, **own_options("relu"))
    trained = Member(coder, lr=1e-3, steps=60, dead_after=0, revival="resample")
    when = [number for number in range(1, 61) if _steps_to(trained, number)]
    assert when == [10, 20, 30, 40]


def _steps_to(trained: Member, number: int) -> bool:
    trained.step_count = number
    return trained._resamples_now()


def test_an_unknown_way_of_reviving_is_refused() -> None:
    assert check_revival("ghost") == "ghost"
    with pytest.raises(UserError, match="no way `prayer`") as caught:
        check_revival("prayer")
    assert "resample" in caught.value.hint


def test_members_with_every_revival_keep_their_loss_finite() -> None:
    for revival in ("auxk", "ghost", "resample", "none"):
        coder = build("batch_topk")
        scorer = Scorer(torch.device("cpu"), dtype=torch.bfloat16)
        trained = Member(
            coder, lr=1e-2, steps=24, dead_after=100, revival=check_revival(revival), scorer=scorer
        )
        for _ in range(24):
            figures = trained.step(torch.randn(64, D))
            assert math.isfinite(figures.loss)
            assert math.isfinite(figures.gradient)
