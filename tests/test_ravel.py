"""RAVEL: a model whose facts are known, interchanges, learned masks, and facts that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import dictionary_of, make_transcoder
from scipy.linalg import hadamard
from tiny_models import WIDTH, tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from monosemy.activations import Statistics
from monosemy.coders import Provenance, ReLU
from monosemy.corpus import Corpus, Fact, open_corpus, read_facts
from monosemy.errors import UserError
from monosemy.evaluation import NotMeaningful, Subject, SuiteResult, make_subject
from monosemy.evaluation.suites import ravel
from monosemy.evaluation.suites.ravel import DICTIONARY, INTERCHANGE, NEURONS, NO_ERROR, UNTRAINED
from monosemy.lm import LM
from monosemy.metrics.disentanglement import cause_and_isolation
from monosemy.training import Run

KINDS = 4
ENTITIES = [f"E{i}{j}" for i in range(KINDS) for j in range(KINDS)]
ANSWERS = [f"{kind}{i}" for kind in "CL" for i in range(KINDS)]
ASK = ["country", "language"]
WORDS = [*ENTITIES, *ANSWERS, *ASK]


def knowing(rotation: Tensor) -> LM:
    """A model of one block that answers "E23 country" with C2 and "E23 language" with L3.

    In a rotated basis, dimensions 0-3 and 4-7 of an entity hold its country and language, 8 and 9
    of the other word which is asked for; attention sends an entity's to what follows, and the MLP
    multiplies each by what is asked for, into dimensions 10-17.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = tiny_llama(layers=1, vocab=len(WORDS)).requires_grad_(False)
    layer, n = model.model.layers[0], 2 * KINDS
    for weight in [*layer.self_attn.parameters(), *layer.mlp.parameters(), model.lm_head.weight]:
        weight.zero_()
    code = torch.zeros(len(WORDS), WIDTH)
    for place, word in enumerate(ENTITIES):
        code[place, int(word[1])] = code[place, KINDS + int(word[2])] = 1
    for place, word in enumerate(ASK):
        code[WORDS.index(word), n + place] = 1
    model.model.embed_tokens.weight.copy_(code @ rotation)
    layer.self_attn.v_proj.weight[:n] = rotation[:n]
    layer.self_attn.o_proj.weight[:, :n] = rotation[:n].T
    layer.mlp.gate_proj.weight[:n] = 10 * rotation[n : n + 2].repeat_interleave(KINDS, 0)
    layer.mlp.up_proj.weight[:n] = rotation[:n]
    layer.mlp.down_proj.weight[:, :n] = rotation[n + 2 : 2 * n + 2].T
    first = WORDS.index(ANSWERS[0])
    model.lm_head.weight[first : first + n] = 10 * rotation[n + 2 : 2 * n + 2]
    return LM(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer))


FACTS = [
    Fact(entity, ask, f"{entity} {ask}", f"{ask[0].upper()}{entity[1 + place]}")
    for entity in ENTITIES
    for place, ask in enumerate(ASK)
]


@pytest.fixture(scope="module")
def planted() -> Subject:
    """A dictionary whose features are the model's own, up to sign: it gives back its input."""
    # Each neuron holds as much of every factor: no choice of neurons parts them.
    rotation = torch.from_numpy(hadamard(WIDTH) / WIDTH**0.5).float()
    lm = knowing(rotation)
    words = np.random.default_rng(0).choice(WORDS, (60, 40))
    corpus = open_corpus([" ".join(some) for some in words], held_out=0.5)
    provenance = Provenance(
        model=lm.name, hookpoint="embed", target=None, context=32, corpus=corpus.describe()
    )
    coder = ReLU(WIDTH, 2 * WIDTH).requires_grad_(False)
    both = torch.cat([rotation, -rotation])
    coder.W_enc.copy_(both)
    coder.W_dec.copy_(both)
    none = Statistics(torch.zeros(WIDTH), 1.0, 0.0)
    dictionary = dictionary_of(coder, lm, corpus, provenance, none, None)
    return make_subject(dictionary, lm, corpus, facts=FACTS, draws=100, sizes={"ravel_steps": 40})


@pytest.fixture(scope="module")
def result(planted: Subject) -> SuiteResult:
    return ravel.run(planted)


def test_planted_features_tell_attributes_apart(result: SuiteResult) -> None:
    assert result.value("cause") == result.value("isolation") == 1
    for baseline in (UNTRAINED, NEURONS):
        assert result.value("disentanglement", baseline) < 0.9
    assert {j.outcome for j in result.judgements} == {"wins against"}
    assert result.context["answered"] == len(FACTS)
    for place, ask in enumerate(ASK):
        swapped = set(result.series["features"][ask]) & set(range(2 * KINDS))
        assert swapped == set(range(place * KINDS, (place + 1) * KINDS))
    # The dictionary is exact, so there is no error to keep.
    assert result.value("disentanglement", NO_ERROR) == 1


def test_an_interchange_changes_everything(result: SuiteResult) -> None:
    assert result.value("cause", INTERCHANGE) == 1
    assert result.value("isolation", INTERCHANGE) == 0


def test_all_features_of_an_exact_dictionary_are_an_interchange(planted: Subject) -> None:
    base, source = torch.randn(2, 5, WIDTH).unbind()
    for name in (DICTIONARY, NO_ERROR):
        swap, size = ravel._swaps(planted)[name]
        torch.testing.assert_close(swap(base, source, torch.ones(size)), source)
        torch.testing.assert_close(swap(base, source, torch.zeros(size)), base)


def test_without_the_error_what_is_put_is_decoded(lm: LM, run: Run) -> None:
    coder = run.dictionary.coder
    base, source = torch.randn(2, 5, WIDTH).unbind()
    mask = (torch.arange(coder.width) % 2).float()
    z, other = coder.encode(base), coder.encode(source)
    mixed = coder.decode(torch.where(mask > 0, other, z))
    torch.testing.assert_close(ravel._without_error(coder)(base, source, mask), mixed)
    error = base - coder(base)
    torch.testing.assert_close(ravel._features(coder)(base, source, mask), mixed + error)


def test_cause_is_of_own_pairs_and_isolation_of_others() -> None:
    own = np.array([[True, True, False, False], [False, False, True, True]])
    hits = np.array([[True, False, True, True], [True, True, False, False]])
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 1, 1], [1, 1, 0, 0]])
    cause, isolation = cause_and_isolation(hits, own, weights)
    np.testing.assert_allclose(cause, [0.25, 0.5, 0.5])
    np.testing.assert_allclose(isolation, [1, 1, 1])


def test_parts_share_no_entity(planted: Subject) -> None:
    known = ravel._known(planted)
    held_out = ravel._parts(planted, known)
    _, train, test = ravel._pairs(planted, known, held_out)
    names = [fact.entity for fact in known.facts]
    parts = [{names[row] for row in pairs.flatten().tolist()} for pairs in (train, test)]
    assert not parts[0] & parts[1]
    asked = replace(planted, facts=[replace(f, split="train") for f in FACTS])
    assert not ravel._parts(asked, ravel._known(asked)).any()


# --- when it says nothing ---------------------------------------------------------------------


def reason(subject: Subject) -> str:
    with pytest.raises(NotMeaningful) as caught:
        ravel.run(subject)
    return str(caught.value)


def test_a_model_that_knows_too_few(planted: Subject) -> None:
    wrong = [f if i < 10 else replace(f, answer="E00") for i, f in enumerate(FACTS)]
    assert "it answers 10 of 32 prompts" in reason(replace(planted, facts=wrong))
    one = [replace(f, split="held_out" if f.entity < "E02" else "train") for f in FACTS]
    assert "of 2 held-out entities" in reason(replace(planted, facts=one))


def test_a_place_from_which_nothing_is_read(planted: Subject) -> None:
    nothing = np.zeros((2, 4), dtype=bool)
    own = np.array([[True, True, False, False], [False, False, True, True]])
    with pytest.raises(NotMeaningful, match=r"changes 0.0% of answers .* after `embed`"):
        ravel._check_read(planted, nothing, own)


def test_without_facts_and_of_a_transcoder(lm: LM, corpus: Corpus, planted: Subject) -> None:
    assert "no facts" in reason(replace(planted, facts=()))
    transcoder = make_subject(make_transcoder(lm, corpus), lm, corpus, facts=FACTS)
    assert "transcoder" in reason(transcoder)


# --- facts in a file --------------------------------------------------------------------------


def write(folder: Path, **changed: str | None) -> Path:
    """A file of facts, the last of them changed."""
    rows = [
        {"entity": f.entity, "attribute": f.attribute, "prompt": f.prompt, "answer": f.answer}
        for f in FACTS
    ]
    rows[-1] = {k: v for k, v in (rows[-1] | changed).items() if v is not None}
    file = folder / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_facts_are_read(tmp_path: Path) -> None:
    assert read_facts(write(tmp_path)) == FACTS


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attribute": None}, "has no column `attribute`"),
        ({"answer": " "}, "facts.jsonl:32: `answer` is empty"),
        ({"entity": "Paris"}, "does not name the entity `Paris`"),
        ({"split": "test"}, "no split `test`"),
        ({"split": "train"}, "`E33` has split `` and `train`"),
    ],
)
def test_bad_facts_are_refused(tmp_path: Path, changed: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_facts(write(tmp_path, **changed))


def test_one_attribute_is_too_few(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[::2]))
    with pytest.raises(UserError, match="1 attributes of 16 entities"):
        read_facts(file)
