"""Ablation sparsity: its formula, what is ablated, and when it says nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import exact, make_transcoder
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_llama, tiny_tokenizer
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.corpus import Corpus, open_corpus
from monosemy.evaluation import SuiteResult, evaluate, make_subject
from monosemy.evaluation.suites import causal
from monosemy.lm import LM
from monosemy.metrics import effect_sparsity
from monosemy.training import Run

# --- the formula ------------------------------------------------------------------------------


def test_one_logit_of_many_is_one_of_many() -> None:
    change = torch.zeros(1, 5, 20)
    change[0, 2, 7] = -3
    assert effect_sparsity(change).item() == pytest.approx(1 / 100)
    assert effect_sparsity(change, centre=False).item() == pytest.approx(1 / 100)


def test_all_logits_alike_are_all() -> None:
    signs = torch.randn(3, 4, 50).sign()
    torch.testing.assert_close(
        effect_sparsity(signs, centre=False), torch.ones(3, dtype=torch.float64)
    )


def test_noise_is_two_over_pi() -> None:
    noise = torch.randn(2, 16, 20_001)
    assert effect_sparsity(noise).tolist() == pytest.approx([2 / np.pi] * 2, abs=0.003)


def test_no_change_has_no_sparsity() -> None:
    assert effect_sparsity(torch.zeros(2, 3, 4)).isnan().all()
    # A number added to all logits of a position is no change either.
    assert effect_sparsity(torch.ones(2, 3, 4)).isnan().all()


@given(shift=st.integers(-50, 50), scale=st.floats(0.01, 100), vocab=st.integers(2, 9))
def test_shifts_of_a_position_and_size_change_nothing(shift: int, scale: float, vocab: int) -> None:
    change = torch.randint(-9, 9, (4, 3, vocab)).float()
    change[:, :, 0] += 20  # some effect
    shifts = torch.tensor([0.0, shift, 2.0 * shift])[:, None]
    torch.testing.assert_close(effect_sparsity(change + shifts), effect_sparsity(change))
    torch.testing.assert_close(effect_sparsity(scale * change), effect_sparsity(change))


# --- the suite --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transcoder(lm: LM, corpus: Corpus) -> Dictionary:
    return make_transcoder(lm, corpus)


@pytest.fixture(scope="module")
def result(run: Run) -> SuiteResult:
    return evaluate(run, suites=["causal"], positions=8, draws=100)["causal"]


def test_every_figure_stands_beside_its_controls(result: SuiteResult) -> None:
    assert result.table.columns == causal.COLUMNS
    for row in result.table.rows:
        for cell in row.values:
            assert cell is not None and 0 <= cell.low <= cell.value <= cell.high <= 1
    judged = {judgement.baseline for judgement in result.judgements}
    assert judged == {"untrained dictionary", "channels"}
    assert set(result.context["ablated"].values()) == {8 * causal.ABLATIONS}
    assert 1 < result.context["documents"] <= 8
    for name, line in result.plots[0].lines.items():
        ends = [y for _, y, _, _ in line]
        assert ends == sorted(ends)
        assert ends[0] <= result.value("ablation sparsity", name) <= ends[-1]


def test_the_same_seed_gives_the_same_table(run: Run, result: SuiteResult) -> None:
    again = evaluate(run, suites=["causal"], positions=8, draws=100)["causal"]
    assert again == result
    other = evaluate(run, suites=["causal"], positions=8, draws=100, seed=1)["causal"]
    assert other.value("ablation sparsity") != result.value("ablation sparsity")


@pytest.mark.parametrize("kind", ["run", "transcoder"])
def test_one_token_is_ablated_where_the_feature_writes(
    kind: str, request: pytest.FixtureRequest, lm: LM, corpus: Corpus
) -> None:
    """Against a plain edit of the text up to there, and all logits of it."""
    dictionary = getattr(request.getfixturevalue(kind), "dictionary", None)
    dictionary = dictionary or request.getfixturevalue(kind)
    subject = make_subject(dictionary, lm, corpus)
    ablations = causal._Ablations(subject)
    for position in causal._draw(subject, 3):
        t = position.tokens.shape[1] - causal.HORIZON
        here = lm.capture(position.tokens, [dictionary.hookpoint, dictionary.explains])
        torch.testing.assert_close(here[dictionary.hookpoint][0, t], position.x)
        torch.testing.assert_close(here[dictionary.explains][0, t], position.y)
        code = dictionary.encode_sparse(position.x[None])
        written = code.values[:, None] * dictionary.coder.W_dec[code.indices]
        writes = ablations.at(position)["dictionary"]
        assert len(writes) == causal.ABLATIONS
        for write in writes:
            assert (written - write).norm(dim=1).min() < 1e-5

        def ablate(y: Tensor, _: Tensor | None, t: int = t, write: Tensor = writes[0]) -> Tensor:
            y = y.clone()
            y[:, t] -= write
            return y

        with lm.edit({dictionary.explains: ablate}):
            after = lm.logits(position.tokens)
        change = after - lm.logits(position.tokens)
        assert change[:, :t].abs().max() == 0 if t else True
        expected = effect_sparsity(change[:, t:])
        found = causal._effects(subject, position, writes)[0, 0]
        assert found == pytest.approx(expected.item(), rel=1e-3)


def test_features_that_are_channels_score_as_channels(
    lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """relu(x) - relu(-x), about a mean of zero: ablating a feature is ablating its coordinate."""
    monkeypatch.setattr(causal, "ABLATIONS", 10**6)
    found = evaluate(
        exact(lm, corpus, "layers.1"), lm, corpus, suites=["causal"], positions=5, draws=20
    )["causal"]
    for row in ("ablation sparsity", "ablation sparsity, no median"):
        assert found.value(row) == pytest.approx(found.value(row, "channels"), rel=1e-4)
        assert found.value(row) != found.value(row, "random directions")


def test_random_directions_are_as_long_as_what_features_write(
    run: Run, transcoder: Dictionary, lm: LM, corpus: Corpus
) -> None:
    for dictionary in (run.dictionary, transcoder):
        subject = make_subject(dictionary, lm, corpus)
        ablations = causal._Ablations(subject)
        for position in causal._draw(subject, 3):
            writes = ablations.at(position)
            mine, drawn = writes["dictionary"], writes["random directions"]
            torch.testing.assert_close(mine.norm(dim=1), drawn.norm(dim=1))
            assert torch.nn.functional.cosine_similarity(mine, drawn).abs().max() < 0.9
            channels = writes["channels"]
            assert (channels != 0).sum(1).tolist() == [1] * causal.ABLATIONS


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(run: Run, corpus: Corpus, side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    lm = LM(tiny_llama(), tokenizer)
    dictionary = replace(
        run.dictionary, provenance=replace(run.dictionary.provenance, context=90, packed=False)
    )
    subject = replace(make_subject(run), lm=lm, dictionary=dictionary)
    texts = {document.id: document.text for document in corpus.documents("held_out")}
    for position in causal._draw(subject, 10):
        assert position.tokens[0, 0] == tokenizer.bos_token_id
        read = tokenizer.decode(position.tokens[0, 1:]).rstrip("\ufffd")  # half a character
        assert len(read) > causal.HORIZON and read in texts[position.document]
        t = position.tokens.shape[1] - causal.HORIZON
        x = lm.capture(position.tokens, ["layers.1"])["layers.1"][0, t]
        torch.testing.assert_close(x, position.x, rtol=1e-4, atol=1e-4)


# --- when it says nothing ---------------------------------------------------------------------


def skipped(*args: object, **settings: object) -> str:
    return evaluate(*args, suites=["causal"], **settings)["causal"].skipped  # type: ignore[arg-type]


def test_without_next_tokens_there_is_nothing_to_change(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LM, "is_causal", property(lambda self: False))
    assert "predicts no next token" in skipped(run)


def test_half_precision_would_measure_its_rounding(run: Run) -> None:
    lm = LM(tiny_llama().bfloat16(), tiny_tokenizer())
    said = causal_reason(replace(make_subject(run), lm=lm))
    assert "bfloat16" in said and "float32" in said


def causal_reason(subject: object) -> str:
    with pytest.raises(causal.NotMeaningful) as caught:
        causal.run(subject)  # type: ignore[arg-type]
    return str(caught.value)


def test_documents_may_be_too_short(run: Run) -> None:
    short = open_corpus([f"x{i} = {i}" for i in range(200)], held_out=0.5)
    assert "no held-out document has 16 tokens" in skipped(run, data=short)


def test_a_feature_without_effect_is_counted_and_left_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects = causal._effects

    def every_second(*args: object) -> Tensor:
        found = effects(*args)  # type: ignore[arg-type]
        found[::2] = torch.nan
        return found

    monkeypatch.setattr(causal, "_effects", every_second)
    found = evaluate(run, suites=["causal"], positions=4, draws=20)["causal"]
    assert found.value("no effect") == 0.5
    assert 0 < found.value("ablation sparsity") < 1
    monkeypatch.setattr(causal, "_effects", lambda *args: effects(*args) * torch.nan)
    assert "none changes a logit" in skipped(run, positions=4, draws=20)
