"""Every architecture passes the same suite; what is particular to one comes after it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monosemy.coders import ARCHITECTURES, BatchTopK, Code, SparseCoder, TopK, make_coder
from monosemy.errors import UserError

D, WIDTH, K = 12, 40, 5


def build(architecture: str, seed: int = 0) -> SparseCoder:
    coder = make_coder(
        architecture, D, WIDTH, seed=seed, **({} if architecture == "relu" else {"k": K})
    )
    with torch.no_grad():
        coder.b_enc.normal_(std=0.1)
        coder.b_dec.normal_()
    if isinstance(coder, BatchTopK):
        coder.set_threshold([torch.randn(200, D)])
    return coder.requires_grad_(False)


@pytest.fixture(params=ARCHITECTURES)
def coder(request: pytest.FixtureRequest) -> SparseCoder:
    return build(request.param)


def test_forward_is_decode_of_encode(coder: SparseCoder) -> None:
    x = torch.randn(3, 7, D)
    z = coder.encode(x)
    assert z.shape == (3, 7, WIDTH)
    assert (z >= 0).all()
    torch.testing.assert_close(coder(x), coder.decode(z), atol=1e-5, rtol=1e-5)


def test_sparse_and_dense_codes_agree(coder: SparseCoder) -> None:
    x = torch.randn(50, D)
    code = coder.encode_sparse(x)
    dense = code.dense()
    assert (code.l0 == (dense > 0).sum(1)).all()
    torch.testing.assert_close(code.decode(coder.W_dec), dense @ coder.W_dec, atol=1e-5, rtol=1e-5)


def test_a_tokens_code_depends_on_that_token_alone(coder: SparseCoder) -> None:
    x = torch.randn(20, D)
    alone = torch.cat([coder.encode(row[None]) for row in x])
    torch.testing.assert_close(coder.encode(x), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1])
def test_empty_and_one_token_batches(coder: SparseCoder, tokens: int) -> None:
    x = torch.randn(tokens, D)
    assert coder(x).shape == (tokens, D)
    code = coder.select_training(coder.pre_activations(x))
    assert coder.decode_sparse(code).shape == (tokens, D)
    assert coder.penalty(code).isfinite()


def test_folding_centre_and_scale_changes_nothing_but_units(coder: SparseCoder) -> None:
    mean, scale = torch.randn(D) * 10, 0.2
    raw = torch.randn(100, D) * 4 + mean
    normal = (raw - mean) * scale
    z, xhat = coder.encode(normal), coder(normal)
    norms = coder.W_dec.norm(dim=1)
    coder.fold(mean, scale)
    torch.testing.assert_close(coder(raw), xhat / scale + mean, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(coder.encode(raw), z / scale, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(coder.W_dec.norm(dim=1), norms)


def test_dtype_and_device_moves_obey_torch(coder: SparseCoder) -> None:
    x = torch.randn(9, D)
    before = coder(x)
    assert coder.double()(x.double()).dtype == torch.float64
    torch.testing.assert_close(coder.float()(x), before)
    assert coder.to("cpu")(x).device.type == "cpu"


def test_the_same_seed_gives_the_same_start(coder: SparseCoder) -> None:
    kind = coder.architecture
    one, two, other = (
        (make_coder(kind, D, WIDTH, seed=s) for s in (3, 3, 4))
        if kind == "relu"
        else (make_coder(kind, D, WIDTH, k=K, seed=s) for s in (3, 3, 4))
    )
    assert torch.equal(one.W_dec, two.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)
    assert one.W_enc.data_ptr() != one.W_dec.data_ptr()


def test_wrong_width_is_refused_with_both_numbers(coder: SparseCoder) -> None:
    with pytest.raises(UserError, match=r"width 13.*made for 12"):
        coder.encode(torch.randn(2, D + 1))


def test_decoding_gradients_equal_the_dense_ones() -> None:
    z = torch.rand(30, WIDTH).mul_(torch.rand(30, WIDTH) < 0.05).double()
    W = torch.randn(WIDTH, D, dtype=torch.float64)
    goal = torch.randn(30, D, dtype=torch.float64)

    def gradients(sparse: bool) -> tuple[Tensor, ...]:
        zz, ww = z.clone().requires_grad_(), W.clone().requires_grad_()
        out = Code.from_mask(zz, z > 0).decode(ww) if sparse else zz @ ww
        (out - goal).square().sum().backward()
        assert zz.grad is not None and ww.grad is not None
        return zz.grad * (z > 0), ww.grad

    for a, b in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(a, b)


def test_topk_keeps_the_k_largest_and_negative_winners_do_not_fire() -> None:
    coder = TopK(2, 3, k=2)
    code = coder.select(torch.tensor([[-1.0, -2.0, 0.5]]))
    assert code.dense().tolist() == [[0, 0, 0.5]]
    assert code.l0.tolist() == [1]


def test_batch_topk_shares_its_budget_over_the_batch() -> None:
    coder = BatchTopK(2, 3, k=1)
    pre = torch.tensor([[3.0, 2.0, 0.0], [1.0, 0.5, 0.0]])
    assert coder.select_training(pre).dense().tolist() == [[3, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize("k", [1, 3, 17, 60])
def test_batch_topk_keeps_exactly_the_largest(k: int) -> None:
    coder = BatchTopK(4, 60, k=k)
    pre = torch.randn(64, 60) * torch.rand(64, 1) * 5  # rows that differ much in their budget
    kept = coder.select_training(pre).dense()
    positive = pre.relu().flatten().sort(descending=True).values[: 64 * k]
    expected = positive[positive > 0]
    torch.testing.assert_close(kept[kept > 0].sort(descending=True).values, expected)


def test_batch_topk_threshold_gives_k_on_other_data() -> None:
    coder = BatchTopK(D, WIDTH, k=K).requires_grad_(False)
    coder.set_threshold(torch.randn(2000, D) for _ in range(4))
    assert coder.encode_sparse(torch.randn(4000, D)).l0.float().mean() == pytest.approx(K, rel=0.05)


@pytest.mark.parametrize("k", [0, -3, 41])
def test_k_outside_the_width_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=rf"k is {k}.*40 features") as caught:
        make_coder("topk", D, WIDTH, k=k)
    assert "from 1 to 40" in caught.value.hint


def test_unknown_architecture_and_option_name_what_is_allowed() -> None:
    with pytest.raises(UserError, match="no architecture `topkk`") as caught:
        make_coder("topkk", D, WIDTH)
    assert "did you mean `topk`" in caught.value.hint
    with pytest.raises(UserError, match="has no option `l1`") as caught:
        make_coder("topk", D, WIDTH, l1=3)
    assert "k" in caught.value.hint


def test_options_and_state_dict_are_all_there_is() -> None:
    """State is all in `state_dict` and `options`: what is built again from them is the same."""
    for name in ARCHITECTURES:
        coder = build(name)
        again = make_coder(name, D, WIDTH, seed=9, **coder.options())
        again.load_state_dict(coder.state_dict())
        x = torch.randn(10, D)
        assert torch.equal(coder(x), again(x))
