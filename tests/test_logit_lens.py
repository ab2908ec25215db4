"""What features are to the vocabulary: known shapes, true tokens, nothing where it is wrong."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from handmade import TARGET, make_transcoder
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_models import TINY_CAUSAL, tiny_bert, tiny_gpt2, tiny_llama, tiny_tokenizer

from monosemy.coders import Dictionary
from monosemy.corpus import Corpus
from monosemy.interpret import logit_lens, vocabulary_lens
from monosemy.interpret.logit_lens import in_stream, token_weights
from monosemy.lm import LM
from monosemy.metrics.moments import moments
from monosemy.training import Run

SHAPE = ("mean", "std", "skewness", "kurtosis")


def test_moments_of_one_token_among_a_thousand() -> None:
    row = torch.zeros(1, 1000)
    row[0, 7] = 0.3
    found = moments(row)
    assert found.skewness.item() == pytest.approx(31.5753, abs=1e-4)
    assert found.kurtosis.item() == pytest.approx(995.001, rel=1e-5)
    assert found.mean.item() == pytest.approx(3e-4)


def test_moments_of_a_normal_distribution_are_about_zero() -> None:
    found = moments(torch.randn(4, 200_000))
    assert found.skewness.abs().max() < 0.03
    assert found.kurtosis.abs().max() < 0.06


@given(
    arrays(np.float32, (3, 40), elements=st.floats(-50, 50, width=32), unique=True),
    st.floats(0.1, 10),
    st.floats(-20, 20),
)
def test_moments_are_scipys_and_shift_and_scale_change_no_shape(
    values: np.ndarray, scale: float, shift: float
) -> None:
    if values.std(1).min() < 0.1:
        return
    found = moments(torch.from_numpy(values))
    exact = values.astype(np.float64)
    np.testing.assert_allclose(found.std, exact.std(1), rtol=1e-4)
    np.testing.assert_allclose(found.skewness, scipy.stats.skew(exact, axis=1), atol=1e-3)
    np.testing.assert_allclose(found.kurtosis, scipy.stats.kurtosis(exact, axis=1), atol=5e-3)
    moved = moments(torch.from_numpy(values * np.float32(scale) + np.float32(shift)))
    np.testing.assert_allclose(moved.skewness, found.skewness, atol=2e-2)
    np.testing.assert_allclose(moved.kurtosis, found.kurtosis, atol=5e-2)


def test_tiny_weights_keep_their_shape() -> None:
    """The fourth power of 1e-12 is nothing in fp32."""
    row = torch.zeros(1, 1000)
    row[0, 0] = 1e-12
    assert moments(row).kurtosis.item() == pytest.approx(995.001, abs=1e-2)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocabulary = torch.randn(37, 8), torch.randn(50, 8)
    trained = torch.arange(50) % 7 != 0
    whole = token_weights(rows, vocabulary, trained, 5)
    # The package has a function of the module's name.
    module = importlib.import_module("monosemy.interpret.logit_lens")
    monkeypatch.setattr(module, "_ENTRIES_AT_ONCE", 150)
    parts = token_weights(rows, vocabulary, trained, 5)
    assert torch.equal(whole.tokens, parts.tokens)
    torch.testing.assert_close(whole.values, parts.values)
    torch.testing.assert_close(whole.moments.kurtosis, parts.moments.kurtosis)


def test_left_out_tokens_count_nowhere() -> None:
    """An outlier that is no token of text would be most of the kurtosis."""
    rows, vocabulary = torch.randn(5, 8), torch.randn(50, 8)
    vocabulary[3] *= 1000
    trained = torch.ones(50, dtype=torch.bool)
    trained[3] = False
    found = token_weights(rows, vocabulary, trained, 50)
    assert 3 not in found.tokens and found.tokens.shape == (5, 98)
    expected = moments((rows @ vocabulary.T)[:, trained])
    torch.testing.assert_close(found.moments, expected)


def test_padding_and_unused_special_tokens_are_left_out() -> None:
    """A vocabulary larger than the tokenizer's, and a special token that has no role."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens("<|reserved|>", special_tokens=True)
    lm = LM(tiny_llama(vocab=400), tokenizer)
    reserved = tokenizer.convert_tokens_to_ids("<|reserved|>")
    _, ids = logit_lens(lm, torch.randn(3, 32), count=400)
    left = set(ids[0].tolist())
    assert max(left) < len(tokenizer) < 400
    assert not {0, reserved} & left
    assert len(left) == len(tokenizer) - 2


@pytest.mark.parametrize("family", sorted(set(TINY_CAUSAL) - {"gemma2"}))
def test_the_lens_is_the_derivative_of_the_logits(family: str) -> None:
    """Along a direction that leaves the final norm's scale as it is, but for that scale.

    Gemma 2 is left out: it bends its logits.
    """
    lm = LM(TINY_CAUSAL[family](), tiny_tokenizer())
    tokens, last = torch.tensor([[0, 5, 9, 40]]), f"layers.{lm.n_layers - 1}"
    x = lm.capture(tokens, [last])[last][0, -1]
    unembedding = lm.unembedding()
    x = x - x.mean() if unembedding.centres else x
    v = torch.randn(32)
    v = v - v.mean() if unembedding.centres else v
    v = v - (v @ x) / (x @ x) * x
    with lm.edit({last: lambda y, _: y + 1e-2 * v}):
        up = lm.logits(tokens)[0, -1]
    with lm.edit({last: lambda y, _: y - 1e-2 * v}):
        change = up - lm.logits(tokens)[0, -1]
    values, ids = logit_lens(lm, v[None], count=150)
    assert torch.corrcoef(torch.stack([values[0], change[ids[0]]]))[0, 1] > 0.999


def test_tables_of_a_dictionary_by_hand(run: Run, lm: LM) -> None:
    tables = vocabulary_lens(lm, run.dictionary, count=4)
    names = {"logits", "logits_without_norm", "reads", "writes"}
    assert set(tables) == {f"{n}.{p}" for n in names for p in ("values", "tokens", *SHAPE)}
    coder, embedding = run.dictionary.coder, lm.token_embedding()
    assert embedding is not None
    text = slice(1, len(lm.tokenizer))
    for name, rows in (("reads", coder.W_enc), ("writes", coder.W_dec)):
        weights = (rows @ embedding.T)[:, text]
        values = weights - weights.mean(1, keepdim=True)
        assert tables[f"{name}.tokens"][:, 0].tolist() == (weights.argmax(1) + 1).tolist()
        np.testing.assert_allclose(tables[f"{name}.values"][:, 0], values.amax(1), atol=1e-5)
        np.testing.assert_allclose(tables[f"{name}.values"][:, 4], values.amin(1), atol=1e-5)
        np.testing.assert_allclose(tables[f"{name}.mean"], weights.mean(1), atol=1e-6)
    weights = (coder.W_dec @ lm.unembedding().weight.T)[:, text]
    np.testing.assert_allclose(
        tables["logits_without_norm.std"], weights.std(1, correction=0), 1e-4
    )
    assert tables["logits.tokens"].dtype == np.int32


def test_where_a_dictionary_stands_outside_the_stream_tables_are_missing(
    run: Run, lm: LM, corpus: Corpus
) -> None:
    def tables(lm: LM, dictionary: Dictionary) -> set[str]:
        return {name.split(".")[0] for name in vocabulary_lens(lm, dictionary)}

    inside = make_transcoder(lm, corpus, "layers.1.mlp.up_proj", TARGET)
    assert tables(lm, inside) == {"logits", "logits_without_norm", "writes"}
    provenance = replace(run.dictionary.provenance, hookpoint="layers.1.self_attn.q_proj")
    queries = replace(run.dictionary, provenance=provenance)
    assert lm.hookpoint(queries.hookpoint).width == 32  # the model's, by chance
    assert tables(lm, queries) == set()
    headless = LM(tiny_llama().model, tiny_tokenizer())
    assert tables(headless, run.dictionary) == {"reads", "writes"}
    assert tables(LM(tiny_bert(), tiny_tokenizer()), run.dictionary) == {"reads", "writes"}


def test_after_the_final_norm_its_gain_is_not_applied_again(run: Run, lm: LM) -> None:
    provenance = replace(run.dictionary.provenance, hookpoint="final_norm")
    tables = vocabulary_lens(lm, replace(run.dictionary, provenance=provenance))
    np.testing.assert_array_equal(tables["logits.values"], tables["logits_without_norm.values"])


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("embed", True),
        ("layers.1", True),
        ("layers.1.mlp", True),
        ("layers.1.ln_2", True),
        ("final_norm", True),
        ("layers.1.attn.c_proj", False),
        ("layers.1.mlp.c_fc", False),
    ],
)
def test_which_hook_points_are_in_the_stream(name: str, within: bool) -> None:
    assert in_stream(LM(tiny_gpt2(), tiny_tokenizer()), name) == within
