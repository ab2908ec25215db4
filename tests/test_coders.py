"""What is particular to one architecture: published formulas and known answers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_coders import WIDTH, D, K, build, exact, gradients, losses
from torch import Tensor

from monosemy.coders import BatchTopK, Code, SparseCoder, TopK, make_coder
from monosemy.coders.coder import TrainingCode
from monosemy.coders.gated import Gated
from monosemy.coders.jumprelu import JumpReLU
from monosemy.coders.matryoshka import MatryoshkaBatchTopK
from monosemy.coders.nonnegative import NonNegative
from monosemy.coders.p_anneal import PAnneal
from monosemy.coders.relu_kl import ReLUKL
from monosemy.coders.select import Scorer
from monosemy.coders.support import DenseSupport, SparseSupport
from monosemy.coders.topk import _largest
from monosemy.errors import UserError


def code_of(values: Tensor, pre: Tensor | None = None) -> TrainingCode:
    """A training code of every place, as a matrix."""
    pre = values if pre is None else pre
    return TrainingCode(pre, values, DenseSupport(*values.shape, values.dtype))


# Codes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.05, 0.8])
def test_decoding_gradients_equal_the_dense_ones(density: float) -> None:
    z = torch.rand(30, WIDTH).mul_(torch.rand(30, WIDTH) < density).double()
    W = torch.randn(WIDTH, D, dtype=torch.float64)
    goal = torch.randn(30, D, dtype=torch.float64)

    def found(sparse: bool) -> tuple[Tensor, ...]:
        zz, ww = z.clone().requires_grad_(), W.clone().requires_grad_()
        out = Code.from_mask(zz, z > 0).decode(ww) if sparse else zz @ ww
        return torch.autograd.grad((out - goal).square().sum(), [zz, ww])

    (z_sparse, W_sparse), (z_dense, W_dense) = found(True), found(False)
    torch.testing.assert_close(z_sparse, z_dense * (z > 0))
    torch.testing.assert_close(W_sparse, W_dense)


# TopK -------------------------------------------------------------------------------------------


def test_topk_keeps_the_k_largest_and_negative_winners_do_not_fire() -> None:
    code = TopK(2, 3, k=2).select(torch.tensor([[-1.0, -2.0, 0.5]]))
    assert code.dense().tolist() == [[0, 0, 0.5]]
    assert code.l0.tolist() == [1]


def test_topk_of_all_with_an_orthonormal_basis_is_the_identity() -> None:
    coder = TopK(D, 2 * D, k=2 * D)
    basis = torch.linalg.qr(torch.randn(D, D)).Q
    with torch.no_grad():
        coder.W_enc.copy_(torch.cat([basis, -basis]))
        coder.W_dec.copy_(coder.W_enc)
    x = torch.randn(20, D)
    torch.testing.assert_close(coder(x), x, atol=1e-5, rtol=1e-5)


def test_multi_topk_adds_an_eighth_of_the_error_with_4k() -> None:
    coder, wide = build("topk", multi=True), build("topk", k=4 * K)
    narrow = build("topk")
    for other in (wide, narrow):
        other.load_state_dict(coder.state_dict())
    x = torch.randn(50, D)
    codes = {c: c.encode_training(x, exact()) for c in (coder, wide, narrow)}
    rest = x - coder.base(x)
    error, left = coder.error(codes[coder], rest)
    with_k, left_by_k = narrow.error(codes[narrow], rest)
    with_4k, _ = wide.error(codes[wide], rest)
    torch.testing.assert_close(error, with_k + with_4k / 8)
    torch.testing.assert_close(left, left_by_k)
    torch.testing.assert_close(coder(x), narrow(x))  # afterwards it is a plain TopK
    # The encoder learns through both selections.
    reached = gradients(coder, error)["W_enc"] - gradients(narrow, with_k)["W_enc"]
    torch.testing.assert_close(reached, gradients(wide, with_4k)["W_enc"] / 8, atol=1e-4, rtol=1e-4)


def test_the_largest_of_each_token_where_some_have_fewer() -> None:
    tokens, features = torch.tensor([0, 0, 0, 2, 2, 3]), torch.tensor([0, 1, 2, 0, 1, 4])
    support = SparseSupport.from_places(tokens, features, 5, 6)
    values = torch.tensor([1.0, 3, 2, 5, 5, 0.1])
    assert _largest(values, support, 2).tolist() == [0, 1, 1, 1, 1, 1]
    assert _largest(values, support, 1).tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("k", [0, -3, 41])
def test_k_outside_the_width_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=rf"k is {k}.*40 features") as caught:
        make_coder("topk", D, WIDTH, k=k)
    assert "from 1 to 40" in caught.value.hint
    with pytest.raises(UserError, match="k is 44"):
        make_coder("topk", D, WIDTH, k=11, multi=True)


@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_free_norms_choose_by_strength(architecture: str) -> None:
    """Otherwise a choice would change when norms are folded."""
    coder = build(architecture, "free", torch.float64)
    x = torch.randn(50, D, dtype=torch.float64)
    support, known = coder.choose(x, exact())
    assert isinstance(support, SparseSupport)
    assert known is not None
    pre = coder.pre_activations(x)
    torch.testing.assert_close(known, pre[support.tokens, support.indices])
    strength = pre * coder.W_dec.norm(dim=1)
    chosen = support.dense(torch.ones(len(support.indices))).bool()
    if architecture == "topk":
        bar = strength.topk(K, dim=1).values[:, -1:]
    else:
        bar = strength.flatten().topk(50 * K).values[-1]
    assert torch.equal(chosen, (strength >= bar) & (strength > 0))


# BatchTopK --------------------------------------------------------------------------------------


def test_batch_topk_shares_its_budget_over_the_batch() -> None:
    """k = 1 of [[3, 2, 0], [1, .5, 0]] keeps 3 and 2; the bar between them and 1 keeps both."""
    coder = BatchTopK(2, 3, k=1)
    with torch.no_grad():
        coder.W_enc.copy_(torch.tensor([[3.0, 1.0], [2.0, 0.5], [0.0, 0.0]]))
    x = torch.eye(2)
    code = coder.encode_training(x, exact())
    assert code.support.dense(code.values).tolist() == [[3, 2, 0], [0, 0, 0]]
    coder.set_threshold([x])
    assert coder.threshold == 1.5
    assert coder.encode(x).tolist() == [[3, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize("k", [1, 3, 17, 60])
def test_batch_topk_keeps_exactly_the_largest(k: int) -> None:
    coder = BatchTopK(4, 60, k=k)
    x = torch.randn(64, 4) * torch.rand(64, 1) * 5  # tokens that differ much in their budget
    code = coder.encode_training(x, exact())
    positive = coder.pre_activations(x).relu().flatten().sort(descending=True).values[: 64 * k]
    expected = positive[positive > 0]
    torch.testing.assert_close(code.values.sort(descending=True).values, expected)


def test_batch_topk_threshold_gives_k_on_other_data() -> None:
    coder = BatchTopK(D, WIDTH, k=K)
    coder.set_threshold(torch.randn(2000, D) for _ in range(4))
    assert coder.encode_sparse(torch.randn(4000, D)).l0.float().mean() == pytest.approx(K, rel=0.05)


def test_batch_topk_threshold_where_too_few_are_positive_lets_all_of_them_fire() -> None:
    coder = BatchTopK(D, WIDTH, k=30)
    x = torch.randn(100, D)
    coder.set_threshold([x])
    assert coder.threshold == 0
    assert torch.equal(coder.encode(x), coder.pre_activations(x).relu())


def test_equal_tokens_do_not_lower_the_threshold() -> None:
    coder = BatchTopK(D, WIDTH, k=K)
    x = torch.randn(1, D).expand(64, D)
    coder.set_threshold([x])
    assert coder.threshold > 0.1
    assert coder.encode_sparse(x).l0.float().mean() == pytest.approx(K, abs=1)


# Matryoshka -------------------------------------------------------------------------------------


def test_matryoshka_error_is_the_mean_over_prefixes() -> None:
    coder = build("matryoshka", prefixes=(1, 5, 17, WIDTH), dtype=torch.float64)
    assert isinstance(coder, MatryoshkaBatchTopK)
    x = torch.randn(50, D, dtype=torch.float64)
    code = coder.encode_training(x, exact())
    error, left = coder.error(code, x - coder.base(x))
    z = code.support.dense(code.values)
    errors = []
    for prefix in coder.prefixes:
        out = coder.b_dec + z[:, :prefix] @ coder.W_dec[:prefix]  # each with b_dec
        errors.append((x - out).square().sum(1).mean())
    torch.testing.assert_close(error, torch.stack(errors).mean())
    torch.testing.assert_close(left, x - coder.decode(z))


def test_matryoshka_of_one_prefix_is_batch_topk() -> None:
    coder, plain = build("matryoshka", prefixes=[WIDTH]), build("batch_topk")
    plain.load_state_dict(coder.state_dict())
    x = torch.randn(50, D)
    found = []
    for one in (coder, plain):
        loss, _ = one.error(one.encode_training(x, exact()), x - one.base(x))
        found.append((loss, gradients(one, loss)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("width", [1, 2, 31, 32, 4096])
def test_default_prefixes_rise_to_the_width(width: int) -> None:
    coder = make_coder("matryoshka", 2, width, k=1)
    assert isinstance(coder, MatryoshkaBatchTopK)
    assert coder.prefixes == sorted(set(coder.prefixes))
    assert coder.prefixes[-1] == width
    if width == 4096:
        assert coder.prefixes == [128, 384, 896, 1920, 4096]


@pytest.mark.parametrize("prefixes", [[10, 5, 40], [5, 5, 40], [5, 39], [0, 40], [-1, 40]])
def test_prefixes_that_do_not_nest_are_refused(prefixes: list[int]) -> None:
    with pytest.raises(UserError, match="prefixes are") as caught:
        make_coder("matryoshka", D, WIDTH, k=2, prefixes=prefixes)
    assert "40" in caught.value.hint


# JumpReLU ---------------------------------------------------------------------------------------


def jumprelu(**options: Any) -> tuple[JumpReLU, Tensor]:
    """One feature with threshold 0.5 and bandwidth 0.2, and four tokens round it."""
    coder = make_coder("jumprelu", 1, 1, bandwidth=0.2, **options).double()
    assert isinstance(coder, JumpReLU)
    with torch.no_grad():
        coder.W_enc.fill_(1.0)
        coder.W_dec.fill_(1.0)
        coder.log_threshold.fill_(math.log(0.5))
    return coder, torch.tensor([[0.35], [0.45], [0.55], [0.65]], dtype=torch.float64)


@pytest.mark.parametrize("dense", [True, False])
def test_jumprelu_gradients_are_the_published_ones(dense: bool) -> None:
    """Sum over tokens of dz/dtheta = -5 and dH/dtheta = -10, times theta for its logarithm.

    The token at 0.45 does not fire but lies in the window, so half of each sum is its doing: a
    step that saw activations and not pre-activations would come to -5.
    """
    coder, x = jumprelu()
    support = DenseSupport(4, 1, torch.float64) if dense else coder.choose(x, exact())[0]
    pre = support.affine(x, coder.W_enc, coder.b_enc)
    values = coder.activate(pre, support)
    to_pre, to_log = torch.autograd.grad(values.sum(), [pre, coder.log_threshold])
    assert to_pre.flatten().tolist()[-2:] == [1, 1]
    assert to_pre.sum() == 2
    assert to_log.item() == pytest.approx(-5 * 0.5)
    pre = support.affine(x, coder.W_enc, coder.b_enc)
    penalty = 4 * coder.penalty(TrainingCode(pre, coder.activate(pre, support), support))
    assert penalty == 2
    found = gradients(coder, penalty)
    assert found["log_threshold"].item() == pytest.approx(-10 * 0.5)
    assert found["W_enc"] == found["b_enc"] == 0  # the step reaches thresholds only


def test_jumprelu_thresholds_are_above_and_not_at() -> None:
    coder, _ = jumprelu()
    bar = coder.threshold.detach()[:, None]
    above = torch.nextafter(bar, bar + 1)
    assert coder.select(torch.cat([bar, above])).dense().flatten().tolist() == [0, above.item()]


def test_jumprelu_chooses_the_window_below_thresholds_too() -> None:
    """A place that does not fire can still pull its threshold down."""
    coder, x = jumprelu()
    support, _ = coder.choose(x, Scorer(torch.device("cpu"), dtype=torch.float32))
    if isinstance(support, SparseSupport):
        assert set(support.tokens.tolist()) >= {1, 2, 3}
    many = build("jumprelu", bandwidth=1.0)
    assert isinstance(many, JumpReLU)
    with torch.no_grad():
        many.b_enc.sub_(1.5)
    batch = torch.randn(100, D)
    support, _ = many.choose(batch, exact())
    assert isinstance(support, SparseSupport)
    chosen = support.dense(torch.ones(len(support.indices))).bool()
    window = (many.pre_activations(batch) - many.threshold).abs() < 0.5
    below = window & (many.pre_activations(batch) < many.threshold)
    assert below.sum() > 10
    assert chosen[window].all()


def test_tanh_and_quadratic_penalties() -> None:
    coder, x = jumprelu(sparsity="tanh")
    code = coder.encode_training(x, exact())
    expected = (math.tanh(4 * 0.55) + math.tanh(4 * 0.65)) / 4
    assert coder.penalty(code).item() == pytest.approx(expected)
    found = gradients(coder, coder.penalty(code))
    assert found["W_enc"] > 0  # smooth, so it reaches all weights
    coder, x = jumprelu(sparsity="quadratic")
    coder.target_l0 = 0.2
    penalty = coder.penalty(coder.encode_training(x, exact()))
    assert penalty.item() == pytest.approx((0.5 / 0.2 - 1) ** 2)
    slope = 2 * (0.5 / 0.2 - 1) / 0.2  # of the penalty by L0, whose own is -10 / 4 by theta
    found = gradients(coder, penalty)
    assert found["log_threshold"].item() == pytest.approx(slope * -10 / 4 * 0.5)


@pytest.mark.parametrize("options", [{"sparsity": "l1"}, {"bandwidth": 0.0}, {"bandwidth": -1.0}])
def test_jumprelu_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        make_coder("jumprelu", D, WIDTH, **options)


# Gated ------------------------------------------------------------------------------------------


def test_gated_is_jumprelu_of_another_threshold() -> None:
    """theta = b_mag - exp(r) b_enc, on u = exp(r) x W_enc^T + b_mag."""
    coder = build("gated", dtype=torch.float64)
    assert isinstance(coder, Gated)
    x = torch.randn(200, D, dtype=torch.float64)
    gain = coder.r_mag.exp()
    u = gain * (x @ coder.W_enc.T) + coder.b_mag
    threshold = (coder.b_mag - gain * coder.b_enc).clamp_min(0)
    expected = u * (u > threshold)
    z = coder.encode(x)
    torch.testing.assert_close(z, expected)
    assert torch.equal(z > 0, expected > 0)
    open_gates = coder.pre_activations(x) > 0
    assert ((z > 0).sum(1) < open_gates.sum(1)).any()  # a magnitude may be zero at an open gate


def test_gates_learn_from_penalty_and_auxiliary_error_only() -> None:
    coder = build("gated", "skip", torch.float64)
    x = torch.randn(50, D, dtype=torch.float64)
    parts = losses(coder, x, x, coder.choose(x, exact())[0])
    assert (gradients(coder, parts["error"])["b_enc"] == 0).all()
    extra = gradients(coder, parts["extra"])
    for name in ("W_dec", "b_dec", "W_skip", "r_mag", "b_mag"):
        assert (extra[name] == 0).all(), name
    assert (extra["b_enc"] != 0).any()
    assert (extra["W_enc"] != 0).any()
    assert (gradients(coder, parts["penalty"])["b_enc"] > 0).any()
    assert (gradients(coder, parts["penalty"])["r_mag"] == 0).all()


def test_free_norms_are_constants_in_both_of_what_gates_learn_from() -> None:
    """In one of the two alone, directions would shrink and magnitudes make up for it."""
    coder = build("gated", "free", torch.float64)
    x = torch.randn(50, D, dtype=torch.float64)
    parts = losses(coder, x, x, coder.choose(x, exact())[0])
    assert (gradients(coder, parts["penalty"])["W_dec"] == 0).all()
    assert (gradients(coder, parts["extra"])["W_dec"] == 0).all()


# Penalties on ReLU ------------------------------------------------------------------------------


def test_the_l1_penalty_sees_norms_and_cannot_be_escaped() -> None:
    """A smaller activation along a longer direction costs the same."""
    coder = build("relu", "free", torch.float64)
    x = torch.randn(50, D, dtype=torch.float64)
    support, _ = coder.choose(x, exact())
    before = losses(coder, x, x, support)
    with torch.no_grad():
        c = torch.rand(WIDTH, dtype=torch.float64) + 0.5
        coder.W_enc.mul_(c[:, None])
        coder.b_enc.mul_(c)
        coder.W_dec.div_(c[:, None])
    after = losses(coder, x, x, support)
    torch.testing.assert_close(after, before)
    strength = coder.encode(x) * coder.W_dec.norm(dim=1)
    torch.testing.assert_close(after["penalty"], strength.sum(1).mean())
    assert (gradients(coder, after["penalty"])["W_dec"] != 0).any()


@pytest.mark.parametrize("architecture", ["p_anneal", "relu_kl", "jumprelu", "gated"])
def test_no_penalty_can_be_escaped_by_norms(architecture: str) -> None:
    options = {"sparsity": "tanh"} if architecture == "jumprelu" else {}
    coder = build(architecture, "free", torch.float64, **options)
    coder.advance(0.6)
    x = torch.randn(50, D, dtype=torch.float64)
    support = DenseSupport(50, WIDTH, torch.float64)
    before = losses(coder, x, x, support)["penalty"]
    coder.fold_norms()
    torch.testing.assert_close(losses(coder, x, x, support)["penalty"], before)


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_p_annealing_follows_the_gradient_of_the_power_at_the_value_of_l1(progress: float) -> None:
    coder = build("p_anneal", "free", torch.float64)
    assert isinstance(coder, PAnneal)
    coder.advance(progress)
    assert coder.p == pytest.approx({0.0: 1, 0.3: 1 - 0.8 / 6, 0.5: 0.6}.get(progress, 0.2))
    x = torch.randn(50, D, dtype=torch.float64)
    support, _ = coder.choose(x, exact())
    penalty = losses(coder, x, x, support)["penalty"]
    strength = coder.encode(x) * coder.W_dec.norm(dim=1)
    l1 = strength.sum(1).mean()
    powers = torch.where(strength > 0, (strength + 0.01) ** coder.p, 0.0).sum(1).mean()
    torch.testing.assert_close(penalty, l1)
    ratio = (l1 / powers).item() if progress > 0.2 else 1.0
    base = l1 if progress <= 0.2 else powers
    for name, gradient in gradients(coder, base).items():
        torch.testing.assert_close(gradients(coder, penalty)[name], ratio * gradient, msg=name)


@pytest.mark.parametrize("p_end", [0.0, -0.5, 1.5, math.nan])
def test_powers_without_a_gradient_are_refused(p_end: float) -> None:
    with pytest.raises(UserError, match="p_end"):
        make_coder("p_anneal", D, WIDTH, p_end=p_end)


def test_p_annealing_survives_a_batch_in_which_nothing_fires() -> None:
    coder = build("p_anneal")
    coder.advance(1.0)
    for values in (torch.zeros(3, WIDTH, requires_grad=True), torch.zeros(0, WIDTH)):
        penalty = coder.penalty(code_of(values))
        assert penalty == 0
        if values.requires_grad:
            assert torch.autograd.grad(penalty, values)[0].isfinite().all()


def test_the_divergence_from_a_rate_has_its_known_answers() -> None:
    """A rate of .05 where half of the tokens fire: 0.494632, and 1.8 by the rate."""
    coder = make_coder("relu_kl", 1, 1, rate=0.05).double()
    assert isinstance(coder, ReLUKL)
    z = torch.tensor([[2.0], [0.0], [0.5], [0.0]], dtype=torch.float64, requires_grad=True)
    penalty = coder.penalty(code_of(z))
    assert penalty.item() == pytest.approx(0.4946319)
    (gradient,) = torch.autograd.grad(penalty, z)
    # The share of tokens has the gradient of the mean of 1 - exp(-z / 0.25).
    expected = [1.8 / 4 * math.exp(-value / 0.25) / 0.25 for value in (2.0, 0.0, 0.5, 0.0)]
    assert gradient.flatten().tolist() == pytest.approx(expected)
    at_rate = torch.zeros(20, 1, dtype=torch.float64)
    at_rate[3] = 1.0
    at_rate.requires_grad_()
    penalty = coder.penalty(code_of(at_rate))
    assert penalty.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(penalty, at_rate)[0].abs().max() < 1e-12


def test_the_rate_comes_from_the_target_unless_it_is_given() -> None:
    values = torch.rand(50, 40).relu()
    penalties = []
    for rate, target in ((0.1, 8.0), (None, 4.0), (None, None), (0.5, None)):
        coder = make_coder("relu_kl", D, 40, rate=rate)
        coder.target_l0 = target
        penalties.append(coder.penalty(code_of(values)).item())
    assert penalties[0] == pytest.approx(penalties[1])  # 4 of 40
    assert penalties[2] == pytest.approx(penalties[3])  # 32 of 40 is above half
    with pytest.raises(UserError, match=r"rate is 1\.5"):
        make_coder("relu_kl", D, WIDTH, rate=1.5)


def test_silent_and_constant_features_have_a_finite_divergence() -> None:
    coder = make_coder("relu_kl", D, 2, rate=0.1)
    z = torch.stack([torch.zeros(9), torch.full((9,), 50.0)], dim=1).requires_grad_()
    penalty = coder.penalty(code_of(z))
    assert penalty.isfinite()
    assert torch.autograd.grad(penalty, z)[0].isfinite().all()


# Non-negative weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 64])
def test_nonnegative_directions_start_in_the_positive_orthant(d: int) -> None:
    coder = make_coder("nonnegative", d, 100)
    assert (coder.W_dec >= 0).all()
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones(100))


def test_nonnegative_directions_stay_there_and_learn_data_made_of_such() -> None:
    """Parts that only add up: recovered up to order, from a start that does not overshoot."""
    from monosemy.training import Member

    parts = torch.eye(4).repeat_interleave(4, dim=1) * (torch.rand(4, 16) + 0.5)
    parts /= parts.norm(dim=1, keepdim=True)

    def batch(n: int) -> Tensor:
        z = (torch.rand(n, 4) < 0.3) * (torch.rand(n, 4) + 0.5)
        return (z @ parts - 0.3 * parts.sum(0)) * 5

    coder = make_coder("nonnegative", 16, 8)
    coder.start(batch(1000), 2)
    trained = Member(coder, lr=1e-2, steps=300, dead_after=10_000, weight=0.2)
    first = trained.step(batch(256)).fvu
    for _ in range(299):
        last = trained.step(batch(256)).fvu
        assert (coder.W_dec >= 0).all()
    assert isinstance(coder, NonNegative)
    assert first < 1.5
    assert last < 0.05
    assert ((parts @ coder.W_dec.T).max(1).values > 0.97).all()
    assert (coder.b_dec < batch(5000).mean(0) - 0.05).float().mean() > 0.7  # a floor


# What may be asked for --------------------------------------------------------------------------


def test_unknown_architecture_and_option_name_what_is_allowed() -> None:
    with pytest.raises(UserError, match="no architecture `topkk`") as caught:
        make_coder("topkk", D, WIDTH)
    assert "did you mean `topk`" in caught.value.hint
    with pytest.raises(UserError, match="has no option `l1`") as caught:
        make_coder("topk", D, WIDTH, l1=3)
    assert "k" in caught.value.hint


@pytest.mark.parametrize("sizes", [{"d_in": 0}, {"width": 0}, {"d_out": 0}, {"d_out": -2}])
def test_sizes_below_one_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        make_coder("relu", **{"d_in": D, "width": WIDTH, **sizes})


@pytest.mark.parametrize("options", [{"d_out": 5}, {"unit_norm": False}])
def test_tied_weights_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="tied"):
        make_coder("relu", D, WIDTH, tied=True, **options)


def test_tied_weights_are_one_parameter_whose_gradients_add() -> None:
    tied: SparseCoder = build("relu", "tied", torch.float64)
    free = make_coder("relu", D, WIDTH).double()
    free.load_state_dict(tied.state_dict())
    x = torch.randn(30, D, dtype=torch.float64)
    support, _ = tied.choose(x, exact())
    one = gradients(tied, losses(tied, x, x, support)["error"])
    two = gradients(free, losses(free, x, x, support)["error"])
    torch.testing.assert_close(one["W_dec"], two["W_enc"] + two["W_dec"])
    assert "W_enc" not in one


def test_a_skip_path_alone_explains_what_is_linear() -> None:
    coder = build("topk", "transcoder", torch.float64)
    assert coder.W_skip is not None
    x = torch.randn(200, D, dtype=torch.float64)
    A, c = torch.randn(D, coder.d_out, dtype=torch.float64), torch.randn(coder.d_out)
    y = x @ A + c
    with torch.no_grad():
        coder.W_skip.copy_(A.T)
        coder.b_dec.copy_(c)
        coder.b_enc.fill_(-1000)
    torch.testing.assert_close(coder(x), y)
    assert losses(coder, x, y, coder.choose(x, exact())[0])["error"] < 1e-20
