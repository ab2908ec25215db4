"""Unlearning: the clamp, what is clamped, how its setting is chosen, and when it says nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from handmade import exact, make_transcoder

from monosemy.corpus import Corpus, open_corpus
from monosemy.evaluation import NotMeaningful, SuiteResult, make_subject, unlearning
from monosemy.evaluation.unlearning import DICTIONARY, MATCHED, Clamp, _Firing
from monosemy.lm import LM
from monosemy.training import Run


@pytest.fixture(scope="module")
def prose() -> Corpus:
    words = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog", "the"]
    texts = [" ".join(words[(i * j + i) % 8] for j in range(1, 30)) + f" {i}." for i in range(60)]
    return open_corpus(texts, held_out=0.5)


@pytest.fixture(scope="module")
def result(run: Run, prose: Corpus) -> SuiteResult:
    subject = make_subject(run, forget=prose, draws=50, sizes={"unlearning_tokens": 400})
    return unlearning.run(subject)


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
