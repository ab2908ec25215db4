"""What is planted in an evaluation must change its report by what arithmetic says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import exact
from torch import Tensor
from torch.nn.functional import cross_entropy

from monosemy.coders import Code, Dictionary, ReLU, SparseCoder, attach
from monosemy.corpus import Corpus, Document, TokenBatch, open_corpus
from monosemy.errors import UserError
from monosemy.evaluation import SuiteResult, evaluate
from monosemy.lm import LM

HOOKPOINT = "layers.1"
EVERYTHING = 10**6


@pytest.fixture(scope="module")
def honest(lm: LM, corpus: Corpus) -> Dictionary:
    """One that loses nothing."""
    return exact(lm, corpus, HOOKPOINT)


def measured(dictionary: Any, lm: LM, corpus: Corpus, **settings: Any) -> SuiteResult:
    sizes = {"tokens": EVERYTHING, "loss_tokens": EVERYTHING, "draws": 20, **settings}
    found = evaluate(dictionary, lm, corpus, suites=["reconstruction"], **sizes)
    return found["reconstruction"]


def batches(dictionary: Dictionary, lm: LM, corpus: Corpus) -> list[tuple[TokenBatch, Tensor]]:
    """Held-out text, and its counted tokens' activations."""
    stream = dictionary.provenance.stream(lm, corpus, "held_out")
    return [(b, lm.capture(b.tokens, [HOOKPOINT])[HOOKPOINT][b.counted]) for b in stream]


def plant(
    monkeypatch: pytest.MonkeyPatch,
    dictionary: Dictionary,
    lm: LM,
    change: Callable[[Tensor], Tensor],
) -> None:
    """Change what a dictionary gives back, but not the untrained one beside it."""
    honestly = ReLU.reconstruct

    def changed(coder: SparseCoder, x: Tensor) -> tuple[Tensor, Code]:
        out, code = honestly(coder, x)
        return change(out), code

    monkeypatch.setattr(ReLU, "reconstruct", changed)
    with pytest.raises(UserError, match="does not fit"):
        attach(dictionary, lm)  # the first to notice
    monkeypatch.setattr(sys.modules[evaluate.__module__], "attach", lambda *_: None)


def test_a_dictionary_scaled_by_two_is_seen(
    honest: Dictionary, lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its FVU is E||x||^2 over the variance, its bias 2; a cosine sees nothing."""
    x = torch.cat([values for _, values in batches(honest, lm, corpus)]).double()
    plant(monkeypatch, honest, lm, lambda out: 2 * out)
    found = measured(honest, lm, corpus)
    assert found.value("FVU") == pytest.approx(
        float(x.square().sum() / (x - x.mean(0)).square().sum()), rel=1e-5
    )
    assert found.value("relative bias") == pytest.approx(2, rel=1e-6)
    assert found.value("L2 ratio") == pytest.approx(2, rel=1e-6)
    assert found.value("cosine") == pytest.approx(1, abs=1e-6)


def test_a_position_off_by_one_is_seen(
    honest: Dictionary, lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FVU is that of activations against their neighbours', CE that of the model fed with them."""
    text = batches(honest, lm, corpus)
    x = torch.cat([values for _, values in text]).double()
    error = sum((values - values.roll(1, 0)).double().square().sum() for _, values in text)
    losses = []
    for batch, values in text:

        def late(x: Tensor, tokens: Tensor | None, batch=batch, values=values) -> Tensor:
            return x.masked_scatter(batch.counted[:, :, None], values.roll(1, 0))

        with lm.edit({HOOKPOINT: late}):
            logits = lm.logits(batch.tokens)[:, :-1]
        same = batch.counted[:, :-1] & (batch.document[:, 1:] == batch.document[:, :-1])
        losses.append(cross_entropy(logits[same], batch.tokens[:, 1:][same], reduction="none"))
    plant(monkeypatch, honest, lm, lambda out: out.roll(1, 0))
    found = measured(honest, lm, corpus)
    assert found.value("FVU") == pytest.approx(
        float(error / (x - x.mean(0)).square().sum()), rel=1e-5
    )
    assert found.value("CE") == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert found.value("CE") > found.context["ce"]["original"] + 0.01


def test_a_leaked_document_stays_out(honest: Dictionary, lm: LM, texts: list[str]) -> None:
    """A copy of a training text under another name is on the side of the original."""
    documents = [Document(f"a{i}", text) for i, text in enumerate(texts)]
    plain = open_corpus(documents, held_out=0.25)
    trained = list(plain.documents("train"))
    leaked = [replace(document, id=f"leaked {document.id}") for document in trained[:40]]
    both = open_corpus([*documents, *leaked], held_out=0.25)
    kept = {document.id for document in both.documents("held_out")}
    assert kept == {document.id for document in plain.documents("held_out")}
    first, second = measured(honest, lm, plain), measured(honest, lm, both)
    for figure in ("documents", "tokens"):
        assert first.context[figure] == second.context[figure] > 0
    assert first.context["documents"] == len(kept)


def test_a_corpus_that_holds_out_more_than_training_did_is_refused(
    lm: LM, texts: list[str], tmp_path: Path
) -> None:
    for number, text in enumerate(texts[:60]):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    dictionary = exact(lm, open_corpus(tmp_path, held_out=0.25), HOOKPOINT)
    with pytest.raises(UserError, match="holds out") as caught:
        measured(dictionary, lm, open_corpus(tmp_path, held_out=0.5))
    assert "0.25" in str(caught.value.hint)
    assert measured(dictionary, lm, open_corpus(tmp_path, held_out=0.2), tokens=100).tables
