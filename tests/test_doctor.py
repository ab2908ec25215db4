"""Each of the usual mistakes is made on purpose, and named."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from torch import Tensor

from monosemy.coders import Dictionary, attach, diagnose
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.training import Run


@pytest.fixture
def dictionary(run: Run) -> Dictionary:
    return run.dictionary


def test_nothing_wrong(dictionary: Dictionary, lm: LM) -> None:
    found = diagnose(dictionary, lm)
    assert found.healthy
    assert found.observed is not None
    assert found.observed.agreement == 1
    attach(dictionary, lm)


@pytest.mark.parametrize("hookpoint", ["layers.0", "layers.2", "embed", "layers.1.mlp"])
def test_wrong_hook_point_is_named_with_the_right_one(
    dictionary: Dictionary, lm: LM, hookpoint: str
) -> None:
    found = diagnose(dictionary, lm, hookpoint)
    assert found.cause == "hook point"
    assert "`layers.1`" in found.explanation
    with pytest.raises(UserError, match=rf"does not fit `{hookpoint}`.*belongs to `layers.1`"):
        attach(dictionary, lm, hookpoint)


def test_wrong_hook_point_in_the_manifest(dictionary: Dictionary, lm: LM) -> None:
    wrong = replace(dictionary, provenance=replace(dictionary.provenance, hookpoint="layers.2"))
    with pytest.raises(UserError, match=r"belongs to `layers.1`"):
        attach(wrong, lm)


def test_normalisation_that_was_never_folded(dictionary: Dictionary, lm: LM) -> None:
    """Undo the folding: the weights are then those that training had."""
    coder = copy.deepcopy(dictionary.coder)
    coder.fold(-dictionary.mean * dictionary.scale, 1 / dictionary.scale)
    found = diagnose(replace(dictionary, coder=coder), lm)
    assert found.cause == "scale"
    assert "never folded" in found.explanation


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_activations_of_another_scale(dictionary: Dictionary, lm: LM, factor: float) -> None:
    def rescale(x: Tensor, tokens: Tensor | None) -> Tensor:
        return x * factor

    with lm.edit({"layers.1": rescale}):
        found = diagnose(dictionary, lm)
    assert found.cause == "scale"
    assert f"{factor:g} times" in found.explanation


def test_other_weights_of_the_same_model(dictionary: Dictionary) -> None:
    found = diagnose(dictionary, LM(tiny_llama(seed=7), tiny_tokenizer()))
    assert found.cause == "base model"
    assert "another base model" in found.explanation


def test_another_family_of_the_same_width(dictionary: Dictionary) -> None:
    assert diagnose(dictionary, LM(tiny_gpt2(), tiny_tokenizer())).cause == "base model"


def test_another_width(dictionary: Dictionary) -> None:
    wide = replace(dictionary, coder=type(dictionary.coder)(48, 96, k=8))
    found = diagnose(wide, LM(tiny_llama(), tiny_tokenizer()))
    assert found.cause == "base model"
    assert "width 32, not 48" in found.explanation


def test_tokenizer_without_bos(dictionary: Dictionary, lm: LM) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    found = diagnose(dictionary, LM(lm.model, tokenizer))
    assert found.cause == "BOS"
    assert "BOS is absent" in found.explanation


def test_fingerprint_tokens_that_lost_their_bos(dictionary: Dictionary, lm: LM) -> None:
    f = dictionary.fingerprint
    cut = replace(
        f,
        tokens=f.tokens[:, 1:],
        attention_mask=f.attention_mask[:, 1:],
        counted=f.counted[:, 1:],
    )
    found = diagnose(replace(dictionary, fingerprint=cut), lm)
    assert found.cause == "BOS"
    assert "BOS is absent" in found.explanation


def test_fingerprint_tokens_that_gained_a_bos(run: Run, lm: LM) -> None:
    """A dictionary trained on rows without BOS, attached where there is one."""
    from conftest import SMALL

    from monosemy.training import train

    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    without = train(LM(lm.model, tokenizer), run.corpus, "layers.1", **SMALL).dictionary
    found = diagnose(without, lm)
    assert found.cause == "BOS"
    assert "trained without BOS" in found.explanation


def test_small_numerical_differences_are_not_an_illness(dictionary: Dictionary, lm: LM) -> None:
    rough = LM(copy.deepcopy(lm.model).to(torch.bfloat16), lm.tokenizer)
    found = diagnose(dictionary, rough)
    assert found.healthy, found
