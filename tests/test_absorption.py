"""Absorption: its formulas, planted absorption, and when it says nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import dictionary_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import BOS, WIDTH, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from monosemy.activations import Statistics
from monosemy.coders import Dictionary, Provenance, ReLU
from monosemy.corpus import open_corpus
from monosemy.evaluation import NotMeaningful, Subject, SuiteResult, make_subject
from monosemy.evaluation.suites import absorption
from monosemy.lm import LM
from monosemy.metrics.absorption import absorption as of_tokens
from monosemy.metrics.absorption import absorption_fraction
from monosemy.training import Run

# --- the formulas -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("main", "absorbed", "projection", "fraction"),
    [(0.0, 3.0, 4.0, 1.0), (2.0, 2.0, 4.0, 0.5), (2.0, 1.0, 4.0, 0.0), (1.0, 5.0, 4.0, 0.75)],
)
def test_fractions_that_are_known(
    main: float, absorbed: float, projection: float, fraction: float
) -> None:
    found = absorption_fraction(*(torch.tensor([v]) for v in (main, absorbed, projection)))
    assert found.tolist() == [fraction]


@given(
    main=st.floats(-5, 5),
    absorbed=st.floats(0, 5),
    projection=st.floats(0.1, 5),
    by=st.floats(1, 9),
)
def test_fractions_are_shares_and_have_no_unit(
    main: float, absorbed: float, projection: float, by: float
) -> None:
    values = [torch.tensor([v], dtype=torch.float64) for v in (main, absorbed, projection)]
    found = absorption_fraction(*values)
    assert 0 <= found.item() <= 1
    if abs(absorbed / projection - 0.4) > 1e-6 and abs(main - projection) > 1e-6:
        torch.testing.assert_close(absorption_fraction(*(by * v for v in values)), found)


W_DEC = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1.0], [0.05, 0, 1.0]])
PROBE = torch.tensor([1.0, 0, 0])
OWN = torch.tensor([True, False, False, False])


def measured(z: list[float], scale: float = 1.0) -> tuple[float, bool]:
    code = torch.tensor([z]) / scale
    projection = scale * code @ (W_DEC @ PROBE)
    fraction, full = of_tokens(code, scale * W_DEC, PROBE, OWN, projection)
    return round(fraction.item(), 5), full.item()


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_a_feature_that_speaks_for_another_absorbs_it(scale: float) -> None:
    assert measured([2, 0, 5, 0], scale) == (0, False)  # its own speaks
    assert measured([0, 5, 5, 0], scale) == (1, True)  # another does
    assert measured([3, 5, 0, 0], scale) == (0.5, False)  # both do
    # Of too small a cosine for absorbing part, but not for the one that absorbs all.
    assert measured([0, 0, 0, 9], scale) == (0, True)
    assert measured([0, 0, 3, 0.1], scale)[0] == 0


# --- words in a model that spells -------------------------------------------------------------


def words(letters: str = absorption.LETTERS, each: int = 12) -> list[str]:
    return [letter + "abcdefghijklmnopqrstuvwxyz"[i] for letter in letters for i in range(each)]


def speller(vocabulary: list[str]) -> LM:
    """A model whose embeddings hold the first letter, and something of each word's own."""
    table = {BOS: 0, **{f"\u0120{word}": i + 1 for i, word in enumerate(vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token=BOS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    model = tiny_llama(vocab=len(table))
    weight = model.get_input_embeddings().weight.data
    weight.normal_(std=0.05)
    for word, id in table.items():
        if word != BOS:
            weight[id, absorption.LETTERS.index(word[1])] += 3
    return LM(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS))


def spelling_dictionary(lm: LM, absorbed: tuple[str, ...] = ()) -> Dictionary:
    """A feature a letter, silent on some words, whose first letters are in a feature of theirs."""
    corpus = open_corpus([" ".join(words()[i::7]) for i in range(7)], held_out=0.5)
    provenance = Provenance(model=lm.name, hookpoint="embed", context=16, corpus=corpus.describe())
    coder = ReLU(WIDTH, 26 + len(absorbed)).requires_grad_(False)
    for weights in (coder.W_enc, coder.W_dec):
        weights[:26] = torch.eye(WIDTH)[:26]
    embedding = lm.model.get_input_embeddings().weight  # type: ignore[operator]
    for row, word in enumerate(absorbed, start=26):
        x = embedding[lm.tokenizer.get_vocab()[f"\u0120{word}"]].detach()  # type: ignore[union-attr]
        # What is this word's alone decides when it fires, and then it writes the whole of it.
        alone = x.clone()
        alone[:26] = 0
        gain = 10 * x.norm() / alone.square().sum()
        coder.W_enc[row], coder.b_enc[row] = gain * alone, -9 * x.norm()
        coder.W_dec[row] = x / x.norm()
        letter = absorption.LETTERS.index(word[0])
        coder.W_enc[letter] -= 1000 * alone / alone.norm()
    coder.b_enc[:26] = -1.0
    nothing = Statistics(torch.zeros(WIDTH), 1.0, 0.0)
    return dictionary_of(coder, lm, corpus, provenance, nothing, None)


@pytest.fixture(scope="module")
def spelling() -> LM:
    return speller(words())


def subject_of(dictionary: Dictionary, lm: LM) -> Subject:
    corpus = open_corpus([" ".join(words()[i::7]) for i in range(7)], held_out=0.5)
    return make_subject(dictionary, lm, corpus, draws=50)


@pytest.fixture(scope="module")
def result(spelling: LM) -> SuiteResult:
    return absorption.run(subject_of(spelling_dictionary(spelling), spelling))


def test_one_feature_a_letter_is_no_absorption(result: SuiteResult) -> None:
    assert result.context["letters"] == 26
    assert result.value("absorption fraction") == result.value("full absorption") == 0
    assert result.value("F1 of the letter's features") == pytest.approx(1)
    assert result.value("F1 of the letter's features", "untrained dictionary") < 0.9
    assert [j.outcome for j in result.judgements] == ["wins against"]
    assert {letter["num_split_features"] for letter in result.series["letters"]} == {1}


def test_planted_absorption_is_found(spelling: LM) -> None:
    clean = absorption._read(subject_of(spelling_dictionary(spelling), spelling))
    letters, probes, biases = absorption._dense_probes(clean)
    # Two test words of `a`, whose features say all there is to say of them.
    ids = np.flatnonzero(clean.letters[0] & clean.test)[:2]
    vocabulary = spelling.tokenizer.get_vocab()
    embedding = spelling.model.get_input_embeddings().weight.detach()
    which = [int((embedding - clean.x[i]).norm(dim=1).argmin()) for i in ids]
    planted = tuple(token[1:] for token, id in vocabulary.items() if id in which)
    coder = spelling_dictionary(spelling, planted).coder
    z = coder.encode(clean.x[torch.from_numpy(clean.test)])
    spoken_for = (z[:, 0] == 0) & (z[:, 26:].amax(1) > 2)
    absorbed = clean.letters[0, clean.test] & spoken_for.numpy()
    assert 2 <= absorbed.sum() <= 4
    found = absorption._measure(coder, clean, letters, probes, biases)
    np.testing.assert_array_equal(found.full[0] > 0, absorbed)
    np.testing.assert_allclose(found.fraction[0], absorbed, atol=1e-6)
    assert found.right[0].sum() == (clean.letters[0] & clean.test).sum()


def test_the_number_of_features_and_their_lengths_do_not_matter(
    spelling: LM, result: SuiteResult
) -> None:
    dictionary = spelling_dictionary(spelling)
    dictionary.coder.W_dec.mul_(5)
    dictionary.coder.W_enc.div_(5)
    dictionary.coder.b_enc.div_(5)
    again = absorption.run(subject_of(dictionary, spelling))
    for row in ("absorption fraction", "F1 of the letter's features"):
        assert again.value(row) == pytest.approx(result.value(row), abs=1e-3)


# --- when it says nothing ---------------------------------------------------------------------


def reason(subject: Subject) -> str:
    with pytest.raises(NotMeaningful) as caught:
        absorption.run(subject)
    return str(caught.value)


def test_a_model_that_does_not_spell(spelling: LM) -> None:
    subject = subject_of(spelling_dictionary(spelling), spelling)
    model = tiny_llama(vocab=len(words()) + 1)
    said = reason(replace(subject, lm=LM(model, spelling.tokenizer)))
    assert "does not hold the spelling" in said and "of 26 letters" in said


def test_a_tokenizer_without_words(run: Run) -> None:
    assert "tokens that are words" in reason(make_subject(run))
