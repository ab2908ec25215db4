"""Unlearning: the clamp, what is clamped, how its setting is chosen, and when it says nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import exact, make_transcoder

from monosemy.corpus import Corpus, Question, open_corpus, read_questions
from monosemy.errors import UserError
from monosemy.evaluation import NotMeaningful, SuiteResult, make_subject, questions
from monosemy.evaluation.questions import answered
from monosemy.evaluation.suites import unlearning
from monosemy.evaluation.suites.unlearning import DICTIONARY, MATCHED, Clamp, _Firing
from monosemy.lm import LM
from monosemy.training import Run


@pytest.fixture(scope="module")
def prose() -> Corpus:
    words = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog", "the"]
    texts = [" ".join(words[(i * j + i) % 8] for j in range(1, 30)) + f" {i}." for i in range(60)]
    return open_corpus(texts, held_out=0.5)


def asked(lm: LM, answer: str) -> list[Question]:
    """Questions of two words, whose right answer is what the model finds likeliest, or least."""
    words, found = ["alpha", "beta"], []
    for i in range(24):
        text = f"Of number {i} it is"
        best, _ = sorted(words, key=lambda word: -log_likelihood(lm, text, word))
        right = words.index(best) if answer == "likeliest" else 1 - words.index(best)
        found.append(Question(text, tuple(words), right, forget=i % 2 == 0))
    return found


def log_likelihood(lm: LM, text: str, word: str) -> float:
    start, whole = lm.encode(text).shape[1], lm.encode(f"{text} {word}")
    each = lm.logits(whole)[0, :-1].log_softmax(-1)
    return float(sum(each[i - 1, whole[0, i]] for i in range(start, whole.shape[1])))


@pytest.fixture(scope="module")
def result(run: Run, lm: LM, prose: Corpus) -> SuiteResult:
    subject = make_subject(run, forget=prose, draws=50, sizes={"unlearning_tokens": 400})
    return unlearning.run(replace(subject, questions=asked(lm, "likeliest")))


def test_only_where_it_fires_a_feature_is_set(run: Run) -> None:
    coder = run.dictionary.coder
    features, targets = torch.tensor([3, 5]), torch.tensor([-2.0, -4.0])
    z = torch.tensor([[0.0, 1.5], [0.0, 0.0], [2.0, 0.5]])
    change = Clamp(coder, features, targets).change(z)
    expected = [-5.5 * coder.W_dec[5], 0 * coder.W_dec[5]]
    expected.append(-4 * coder.W_dec[3] - 4.5 * coder.W_dec[5])
    torch.testing.assert_close(change, torch.stack(expected))
    nothing = Clamp(coder, features[:0], targets[:0]).change(z[:, :0])
    assert (nothing == 0).all()


def test_what_is_clamped_is_rare_elsewhere(run: Run) -> None:
    forget = torch.tensor([0.5, 0.4, 0.3, 0.0, 0.45, 0.29])
    retain = torch.tensor([0.2, 0.0005, 0.005, 0.0, 0.3, 0.6])
    firing = _Firing(run.dictionary.coder, forget, retain, torch.arange(6.0))
    assert firing.choose(0.001, 3).tolist() == [1]
    assert firing.choose(0.01, 3).tolist() == [1, 2]
    assert firing.choose(0.01, 1).tolist() == [1]
    assert firing.matched(torch.tensor([1, 2])).tolist() == [4, 5]
    assert firing.clamp(torch.tensor([2]), 4.0).targets.tolist() == [-8.0]


def test_nothing_clamped_changes_no_logit(lm: LM, run: Run) -> None:
    subject = make_subject(run)
    batch = next(iter(subject.stream("held_out")))
    change = torch.zeros(int(batch.counted.sum()), run.dictionary.d_in)
    plain = lm.logits(batch.tokens, attention_mask=batch.attention_mask)
    torch.testing.assert_close(unlearning._logits(subject, batch, change), plain, rtol=0, atol=0)


def test_the_setting_keeps_other_text_and_is_not_chosen_where_it_is_measured(
    run: Run, result: SuiteResult
) -> None:
    assert result.table.columns == unlearning.COLUMNS
    chosen: Any = result.context["chosen"][DICTIONARY]
    if chosen is None:
        assert result.value("loss on text to forget") == result.value("loss on other text") == 0
    else:
        assert chosen["rarer_than"] in unlearning.RARE and chosen["features"]
        assert abs(result.value("loss on other text")) < 3 * unlearning.HARM
    assert {j.baseline for j in result.judgements} == {unlearning.UNTRAINED, MATCHED}
    for line in result.plots[0].lines.values():
        assert len(line) == 12
    choosing, measuring = unlearning._halves(replace(make_subject(run), draws=5), 9)
    assert not (choosing.astype(bool) & (measuring != 0).any(0)).any()
    assert (choosing[0] + measuring[0] == 1).all()
    np.testing.assert_array_equal(measuring.sum(1), 4)


# --- questions --------------------------------------------------------------------------------


def test_an_answer_is_the_likeliest_choice(lm: LM) -> None:
    right, wrong = asked(lm, "likeliest"), asked(lm, "least")
    assert answered(lm, right).all()
    assert not answered(lm, wrong).any()
    assert answered(lm, [right[0], wrong[1], right[2]]).tolist() == [True, False, True]


def test_the_score_counts_only_where_other_answers_are_kept(run: Run, lm: LM) -> None:
    subject = make_subject(run, draws=50, questions=asked(lm, "likeliest"))
    edits = {"dictionary": {}, "same": {"layers.1": lambda x, tokens: x.clone()}}
    (table,) = questions.ask(subject, edits).tables
    for column in table.columns:
        assert table.value("accuracy to forget", column) == 1
        assert table.value("accuracy on others", column) == 1
        assert table.value("unlearning score", column) == 0
    forget = np.arange(20) % 2 == 0
    right = {"dictionary": ~forget, "all forgotten": forget & ~forget, "nothing": forget | ~forget}
    found = questions._asked(subject, right, forget)
    assert found.tables[0].value("unlearning score", "dictionary") == 1
    assert found.tables[0].value("unlearning score", "all forgotten") == 0
    assert [j.outcome for j in found.judgements] == ["wins against"] * 2
    few = questions.ask(replace(subject, questions=asked(lm, "least")), edits)
    assert not few.tables and "answers 0 questions" in few.note


def test_a_clamp_edits_what_it_is_said_to(run: Run, lm: LM) -> None:
    subject = make_subject(run)
    batch = next(iter(subject.stream("held_out")))
    coder, features = run.dictionary.coder, torch.arange(40)
    clamp = Clamp(coder, features, -torch.ones(40))
    x = lm.capture(batch.tokens, ["layers.1"])["layers.1"]
    change = clamp.change(coder.encode(x[batch.counted])[:, features])
    expected = x.clone()
    expected[batch.counted] += change
    special = torch.isin(batch.tokens, torch.tensor(sorted(lm.special_ids)))
    torch.testing.assert_close(
        clamp.edit(lm)(x, batch.tokens)[batch.counted & ~special],
        expected[batch.counted & ~special],
    )
    torch.testing.assert_close(clamp.edit(lm)(x, batch.tokens)[special], x[special])


def test_questions_are_asked_with_the_setting_chosen(result: SuiteResult) -> None:
    assert [table.columns for table in result.tables] == [unlearning.COLUMNS] * 2
    for column, chosen in result.context["chosen"].items():
        if chosen is None:
            assert result.value("accuracy to forget", column) == 1
    assert sum(j.figure == "unlearning score" for j in result.judgements) == 2


def test_questions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    row = {"question": "Which?", "choices": ["this", "that"], "answer": "B", "forget": True}
    file.write_text(json.dumps(row) + "\n" + json.dumps(row | {"answer": 0}))
    first, second = read_questions(file)
    assert first == Question("Which?", ("this", "that"), 1, forget=True) and second.answer == 0
    for bad in ({"answer": "C"}, {"answer": None}, {"choices": "ab"}, {"forget": "yes"}):
        file.write_text(json.dumps(row | bad))
        with pytest.raises(UserError, match=f"questions.jsonl:1: `{next(iter(bad))}` is"):
            read_questions(file)


# --- when it says nothing ---------------------------------------------------------------------


def reason(subject: object) -> str:
    with pytest.raises(NotMeaningful) as caught:
        unlearning.run(subject)  # type: ignore[arg-type]
    return str(caught.value)


def test_without_text_to_forget(run: Run) -> None:
    assert "no text to forget" in reason(make_subject(run))


def test_too_few_documents(run: Run) -> None:
    few = open_corpus([f"the quick brown fox {i} " * 20 for i in range(6)], held_out=0.5)
    subject = make_subject(run, forget=few, draws=10, sizes={"unlearning_tokens": 100})
    assert "2 held-out documents" in reason(subject)


def test_a_transcoder_and_a_model_without_loss(
    lm: LM, corpus: Corpus, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcoder = make_subject(make_transcoder(lm, corpus), lm, corpus)
    assert "transcoder" in reason(replace(transcoder, forget=corpus))
    plain = make_subject(exact(lm, corpus, "layers.1"), lm, corpus, forget=corpus)
    monkeypatch.setattr(LM, "is_causal", property(lambda self: False))
    assert "no loss to raise" in reason(plain)
