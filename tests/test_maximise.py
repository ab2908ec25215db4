"""What the search finds is true: it can be typed, it is no worse than what it began with."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from handmade import make_transcoder
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama, tiny_tokenizer

from monosemy.cli.maximise import Command
from monosemy.coders import Dictionary, make_coder
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.interpret import build_features
from monosemy.interpret.maximise import Maximised, _Search, _undominated, maximise
from monosemy.lm import LM
from monosemy.training import Run, train


@pytest.fixture(autouse=True)
def fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dictionaries made by hand here have the fingerprint of another."""
    module = importlib.import_module("monosemy.interpret.maximise")
    monkeypatch.setattr(module, "attach", lambda dictionary, lm: None)


def handmade(run: Run, hookpoint: str, rows: torch.Tensor) -> Dictionary:
    """Features that read these rows at a hook point."""
    coder = make_coder("relu", 32, len(rows))
    with torch.no_grad():
        coder.W_enc.copy_(rows)
    provenance = replace(run.dictionary.provenance, hookpoint=hookpoint)
    return replace(
        run.dictionary, coder=coder, provenance=provenance, strength=torch.ones(len(rows))
    )


def search(run: Run, lm: LM, feature: int = 3, **options) -> Maximised:
    few = {"steps": 3, "length": 6, "penalties": [0.01, 0.1, 1.0]}
    options = {**few, "exemplar": exemplar(lm), **options}
    return maximise(run.dictionary, lm, feature, **options)


def exemplar(lm: LM) -> list[int]:
    return lm.encode("def function_1(value):\n    return value")[0].tolist()


@pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2])
def test_a_feature_that_is_a_tokens_embedding_finds_the_token(family, run: Run) -> None:
    """Its pre-activation is a product of embedding rows: the best token is known."""
    lm = LM(family(), tiny_tokenizer())
    embedding = lm.token_embedding()
    assert embedding is not None
    # Bytes that are no character on their own can be typed nowhere.
    typed = [i for i in range(1, 300) if lm.encode(lm.tokenizer.decode([i]))[0].tolist() == [0, i]]
    name = "embed" if family is tiny_llama else "transformer.wte"
    features = typed[:: len(typed) // 2][:2]
    dictionary = handmade(run, name, embedding[features])
    for feature, token in enumerate(features):
        scores = embedding[typed] @ embedding[token]
        found = maximise(dictionary, lm, feature, steps=8, length=4, penalties=[0.0, 0.01])
        best = found.frontier[0]
        assert typed[int(scores.argmax())] in best.ids
        assert best.activation == pytest.approx(float(scores.max()), rel=1e-4)


def test_where_fluency_is_all_text_becomes_likely(run: Run, lm: LM) -> None:
    """Likelier than what the model itself writes, which random text is far from."""
    start = search(run, lm, steps=0, exemplar=None, penalties=[1e6])
    found = search(run, lm, steps=20, exemplar=None, penalties=[1e6])
    tokens = torch.zeros(64, 1, dtype=torch.long)
    for _ in range(6):
        likely = lm.logits(tokens)[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(likely, 1)], 1)
    scores = lm.logits(tokens)[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])
    likeliest = found.frontier[-1].cross_entropy
    assert likeliest < -float(scores.mean()) < start.frontier[-1].cross_entropy - 1


def test_never_worse_than_the_start(run: Run, lm: LM) -> None:
    for feature in run.dictionary.strength.topk(2).indices.tolist():
        found = search(run, lm, feature)
        start = search(run, lm, feature, steps=0)
        for before in start.frontier:
            assert any(
                now.activation >= before.activation - 1e-5
                and now.cross_entropy <= before.cross_entropy + 1e-5
                for now in found.frontier
            )


def test_the_frontier_is_one_and_its_figures_are_true(run: Run, lm: LM) -> None:
    feature = int(run.dictionary.strength.argmax())
    found = search(run, lm, feature)
    activations = [row.activation for row in found.frontier]
    entropies = [row.cross_entropy for row in found.frontier]
    assert activations == sorted(activations, reverse=True)
    assert entropies == sorted(entropies, reverse=True)
    assert len(set(entropies)) == len(entropies)
    assert found.exemplar is not None and found.exemplar.ids == tuple(exemplar(lm)[1:])
    for row in [*found.frontier, found.exemplar]:
        tokens = lm.encode(row.text)
        assert tokens[0].tolist() == [0, *row.ids]
        assert 0 not in row.ids
        x = lm.capture(tokens, ["layers.1"])["layers.1"][0, 1:]
        z = run.dictionary.encode(x)[:, feature]
        assert row.activation == pytest.approx(float(z.max()), abs=1e-4)
        scores = lm.logits(tokens)[0].log_softmax(-1)
        expected = -np.mean([float(scores[i, t]) for i, t in enumerate(row.ids)])
        assert row.cross_entropy == pytest.approx(expected, abs=1e-4)
    assert found.ratio(found.exemplar) in (1.0, pytest.approx(float("nan"), nan_ok=True))


def test_the_same_seed_gives_the_same(run: Run, lm: LM) -> None:
    assert search(run, lm) == search(run, lm)
    assert search(run, lm).frontier != search(run, lm, seed=1).frontier


def test_logits_in_parts_change_nothing(run: Run, lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search(run, lm)
    module = importlib.import_module("monosemy.interpret.maximise")
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 7 * 300 * 5)
    parts = search(run, lm)
    assert [row.ids for row in parts.frontier] == [row.ids for row in whole.frontier]


@pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("bos", [True, False])
def test_the_gradient_is_that_of_the_objective(family, bos: bool, run: Run) -> None:
    """By differences: a little of a token's embedding put in, a little of it taken as target."""
    lm = LM(family(), tiny_tokenizer(bos=bos))
    searching = _Search(run.dictionary, lm, 3, 5, np.random.default_rng(0))
    pool, price = searching.score(searching.starts((), 1)), 0.7
    gradient = searching._gradient(pool, np.array([price]))[0]
    tokens, embedding = searching._tokens(pool.ids), searching.embedding
    front = int(bos)

    def objective(position: int, token: int, share: float) -> float:
        put = torch.zeros(*tokens.shape, embedding.shape[1])
        put[0, front + position] = share * embedding[token]
        x, logits = searching._run(tokens, put)
        predicted = logits[0, :-1].log_softmax(-1)
        targets = torch.nn.functional.one_hot(tokens[0], predicted.shape[-1]).float()
        targets[front + position, token] += share
        entropy = -(targets[1:] * predicted).sum() / len(predicted)
        return float(searching._pre(x).amax() - price * entropy)

    for position, token in [(0, 17), (2, 60), (4, 33), (4, int(tokens[0, -1]))]:
        step = 2e-3
        up, down = (objective(position, token, sign * step) for sign in (1, -1))
        expected = (up - down) / (2 * step)
        assert float(gradient[position, token]) == pytest.approx(expected, rel=0.02, abs=0.02)


def test_a_transcoder_is_searched_where_it_reads(lm: LM, corpus: Corpus) -> None:
    transcoder = make_transcoder(lm, corpus)
    feature = int(transcoder.strength.argmax())
    found = maximise(transcoder, lm, feature, steps=4, length=5)
    best = found.frontier[0]
    x = lm.capture(lm.encode(best.text), [transcoder.hookpoint])[transcoder.hookpoint][0, 1:]
    assert best.activation == pytest.approx(float(transcoder.encode(x)[:, feature].max()), abs=1e-4)


def test_without_bos_the_first_token_is_not_predicted(run: Run) -> None:
    lm = LM(tiny_llama(), tiny_tokenizer(bos=False))
    found = search(run, lm, exemplar=None, steps=2)
    row = found.frontier[0]
    tokens = lm.encode(row.text)
    assert tokens[0].tolist() == list(row.ids)
    scores = lm.logits(tokens)[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])
    assert row.cross_entropy == pytest.approx(-float(scores.mean()), abs=1e-4)


def test_an_exemplar_that_is_too_short_is_a_start_too(run: Run, lm: LM) -> None:
    short = lm.encode("def")[0].tolist()
    found = search(run, lm, exemplar=short, steps=1)
    assert all(len(row.ids) == 6 for row in found.frontier)
    assert found.exemplar is not None and found.exemplar.text == "def"


def test_the_command_prints_the_frontier_beside_the_best_exemplar(
    checkpoint: Path, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = LM(checkpoint)
    dictionary = train(lm, corpus, "layers.1", **SMALL | {"tokens": 10_000}).dictionary
    dictionary.save_pretrained(tmp_path / "dictionary")
    features = build_features(dictionary, lm, corpus, tmp_path / "index", tokens=1000)
    feature = features.live[0]
    Command(tmp_path, feature, steps=2, length=5).run()
    shown = capsys.readouterr().out
    peak = features[feature].max
    assert f"feature {feature}" in shown and f"{peak:.2f}   1.00" in shown
    assert "best exemplar: " in shown


def test_undominated() -> None:
    high, low = np.array([3.0, 1, 2, 3, 2]), np.array([5.0, 1, 2, 4, 3])
    assert _undominated(high, low).tolist() == [3, 2, 1]


def test_what_cannot_be_searched_is_refused(run: Run, lm: LM) -> None:
    with pytest.raises(UserError, match="no feature 96"):
        search(run, lm, 96)
    with pytest.raises(UserError, match="inputs of 1 tokens"):
        search(run, lm, length=1)
    with pytest.raises(UserError, match="inputs of 64 tokens") as caught:
        search(run, lm, length=64)
    assert "2 to 63" in caught.value.hint
    with pytest.raises(UserError, match="not a causal language model"):
        search(run, LM(tiny_bert(), tiny_tokenizer()), exemplar=None)
    with pytest.raises(UserError, match="has no tokenizer"):
        search(run, LM(tiny_llama()), exemplar=None)
