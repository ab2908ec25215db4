"""Labelled examples for probes: what counts, what is drawn, and that folds share no text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from monosemy.coders import TopK
from monosemy.corpus import Corpus, open_corpus, open_labels
from monosemy.evaluation import make_subject
from monosemy.evaluation.examples import FOLDS, Examples, examples_of
from monosemy.evaluation.subject import NotMeaningful, Subject
from monosemy.lm import LM
from monosemy.training import Run


def subject_of(run: Run, data: Any = None, **settings: Any) -> Subject:
    sizes = {"probe_tokens": 4_000, "examples": 100} | settings.pop("sizes", {})
    subject = make_subject(run, data=data, sizes=sizes, **settings)
    # One untrained dictionary for all tests: which one is nothing to them.
    subject._kept["untrained"] = TopK(subject.dictionary.d_in, 96, k=8).requires_grad_(False)
    return subject


@pytest.fixture(scope="module")
def source() -> Corpus:
    """Python source of which the parser knows much."""
    return open_corpus(
        [
            f"def read_{i}(path, n={i}):\n    # what is done\n    for x in path:\n        "
            f"print(x, 'a{i}', n)\n    return {i}\n"
            for i in range(60)
        ],
        held_out=0.5,
    )


@pytest.fixture(scope="module")
def tokens(run: Run, source: Corpus) -> Examples:
    return examples_of(subject_of(run, source))


@pytest.fixture(scope="module")
def documents(run: Run) -> Examples:
    rows = [
        {"text": f"{word} number {i} " * (1 + i % 3), "label": word}
        for i in range(60)
        for word in ("red", "green")
    ]
    rows += [{"text": "red number 0 ", "label": "red"}]  # the first one's text again
    return examples_of(subject_of(run, labels=open_labels(rows)))


def test_one_token_is_one_example(tokens: Examples, lm: LM) -> None:
    assert tokens.of_tokens and {"comment", "parameter", "loop_for"} <= set(tokens.names)
    comment = tokens.labels[:, tokens.names.index("comment")]
    ids = tokens.words["token identity"].indices
    said = lm.tokenizer.decode(ids[comment])
    assert "what" in said or "#" in said
    assert set(tokens.words["bag of tokens"].sum(1).tolist()) <= set(range(1, 9))
    assert len(tokens.x) == len(tokens.labels) == len(tokens.fold) == len(tokens.length)


def test_as_many_positive_as_negative_examples_are_drawn(tokens: Examples) -> None:
    there = tokens.rows >= 0
    assert (tokens.target.sum(1) * 2 == there.sum(1)).all()
    assert there.sum(1).max() <= 200
    for row in tokens.rows:
        drawn = row[row >= 0]
        assert len(set(drawn)) == len(drawn)
        assert len(set(tokens.document[drawn])) >= FOLDS


@pytest.mark.parametrize("kind", ["tokens", "documents"])
def test_folds_share_no_text(kind: str, request: pytest.FixtureRequest) -> None:
    examples: Examples = request.getfixturevalue(kind)
    for text in np.unique(examples.document):
        assert len(set(examples.fold[examples.document == text])) == 1
    assert set(examples.fold) == set(range(FOLDS))


def test_the_same_text_under_another_name_is_in_one_fold(documents: Examples) -> None:
    assert documents.context["documents"] == 121 and documents.context["texts"] == 120


def test_documents_are_means_over_counted_tokens(documents: Examples, run: Run) -> None:
    x = run.lm.capture(
        torch.tensor([[0, *run.lm.tokenizer("red number 0 ", add_special_tokens=False).input_ids]]),
        ["layers.1"],
    )["layers.1"][0, 1:]
    distance = (documents.x - x.mean(0)).norm(dim=1)
    assert distance.min() < 1e-4
    place = int(distance.argmin())
    assert documents.length[place] == len(x) == documents.words["bag of tokens"][[place]].sum()
    pooled = run.dictionary.encode_sparse(x).dense().mean(0)
    found = documents.codes["dictionary"][[place]].toarray()[0]
    np.testing.assert_allclose(found, pooled.numpy(), atol=1e-4)


def test_what_the_dictionary_was_trained_on_is_left_out(run: Run, corpus: Corpus) -> None:
    seen = [document.text for document in corpus.documents("train")][:30]
    rows = [{"text": text, "label": "seen"} for text in seen]
    rows += [{"text": f"other {i}", "label": "ab"[i % 2]} for i in range(120)]
    examples = examples_of(subject_of(run, labels=open_labels(rows)))
    assert examples.context["in_training"] == 30
    assert "seen" not in examples.names and examples.context["documents"] == 120


def test_without_labels_text_must_be_python(run: Run) -> None:
    prose = open_corpus([f"Once upon a time, {i} years ago." for i in range(40)], held_out=0.5)
    with pytest.raises(NotMeaningful, match="give labelled text with --labels"):
        examples_of(subject_of(run, prose))


def test_too_few_examples_are_counted_and_named(run: Run) -> None:
    rows = [{"text": f"text {i}", "label": "rare" if i < 3 else "rest"} for i in range(60)]
    with pytest.raises(NotMeaningful, match=r"`rare`, is true of 3 of 60 documents, in 3 texts"):
        examples_of(subject_of(run, labels=open_labels(rows)))
    rows += [{"text": f"more {i}", "label": "other"} for i in range(60)]
    examples = examples_of(subject_of(run, labels=open_labels(rows)))
    assert examples.context["concepts_left_out"] == ["rare"]
