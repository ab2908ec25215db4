from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from handmade import dictionary_of, make_transcoder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_n2g import fired, text_of
from tiny_models import tiny_bert, tiny_tokenizer
from torch import Tensor

from monosemy.activations import Statistics
from monosemy.coders import Dictionary, Provenance, ReLU, SparseCoder
from monosemy.corpus import Corpus
from monosemy.evaluation import Evaluation, Subject, SuiteResult, evaluate
from monosemy.evaluation.simulation import Scores, Simulation, token_rule
from monosemy.evaluation.suites import explanations
from monosemy.interpret import Firings, Graph, Pattern, TokenRows
from monosemy.lm import LM
from monosemy.metrics import detection
from monosemy.training import Run

SIZES: dict[str, Any] = {
    "tokens": 3000,
    "explained_features": 12,
    "loss_tokens": 600,
    "draws": 100,
}


def measured(*args: Any, **settings: Any) -> SuiteResult:
    return evaluate(*args, suites=["explanations"], **SIZES | settings)["explanations"]


@pytest.fixture(scope="module")
def evaluation(run: Run) -> SuiteResult:
    return measured(run)


@pytest.fixture(scope="module")
def of_tokens(lm: LM, corpus: Corpus) -> Dictionary:
    """A dictionary of embeddings, each feature one token: relu(10 x.e/|e|^2 - 9), 1 on its own."""
    embeddings = lm.model.get_input_embeddings().weight.detach()
    coder = ReLU(*reversed(embeddings.shape)).requires_grad_(False)
    coder.W_enc.copy_(10 * embeddings / embeddings.square().sum(1, keepdim=True))
    coder.b_enc.fill_(-9)
    coder.W_dec.copy_(embeddings)
    provenance = Provenance(model=lm.name, hookpoint="embed", context=32, corpus=corpus.describe())
    none = Statistics(torch.zeros(coder.d_in), 1.0, 0.0)
    return dictionary_of(coder, lm, corpus, provenance, none, None)


# --- the suite --------------------------------------------------------------------------------


def test_features_of_one_token_are_explained_perfectly(
    of_tokens: Dictionary, lm: LM, corpus: Corpus
) -> None:
    found = measured(of_tokens, lm, corpus)
    assert found.context["features"] == 12 == found.context["replaced"]["dictionary"]
    for column in ("dictionary", "token rule"):
        for row in ("F1", "precision", "recall", "loss kept"):
            assert found.value(row, column) == pytest.approx(1, abs=1e-4), (row, column)
        assert found.value("CE increase", column) == pytest.approx(0, abs=1e-5)
        density = found.value("density", column)
        assert found.value("lift", column) > 0.2 / density > 1
    for feature in found.series["features"]:
        assert feature["ngrams"] == [lm.tokenizer.decode([feature["feature"]]).replace("\n", "↵")]
    # What is embedded knows of no other token, so neither does what is untrained.
    assert "ties with untrained dictionary" in found.verdict


def test_where_all_that_fire_are_explained_all_are_replaced(
    of_tokens: Dictionary, lm: LM, corpus: Corpus
) -> None:
    found = measured(of_tokens, lm, corpus, explained_features=1000)
    assert found.context["replaced"]["dictionary"] == of_tokens.width
    assert found.context["replaced"]["untrained dictionary"] <= found.context["features"]
    assert "features" not in found.context["interval"]
    assert found.value("loss kept") > 0.9
    ce = found.context["cross_entropy"]
    assert ce["ablated dictionary"] > ce["own dictionary"] == pytest.approx(ce["original"])


def test_figures_stand_beside_baselines_with_intervals(evaluation: SuiteResult) -> None:
    assert evaluation.table.columns == ["dictionary", "untrained dictionary", "token rule"]
    names = [row.name for row in evaluation.table.rows]
    assert names[:5] == ["F1", "precision", "recall", "lift", "density"]
    assert {"CE", "CE increase", "loss kept"} <= set(names)
    for row in evaluation.table.rows:
        assert row.explanation
        for cell in row.values:
            assert cell is not None and cell.low <= cell.value <= cell.high
    assert [j.baseline for j in evaluation.judgements] == ["untrained dictionary"]
    increase = evaluation.value("CE") - evaluation.context["cross_entropy"]["own dictionary"]
    assert evaluation.value("CE increase") == pytest.approx(increase)


def test_all_of_it_is_json(evaluation: SuiteResult) -> None:
    whole = Evaluation([evaluation], {})
    assert json.loads(json.dumps(whole.to_dict(), allow_nan=False)) == whole.to_dict()
    features = evaluation.series["features"]
    assert len(features) == len({f["feature"] for f in features}) == 12
    f1 = [f["f1"] for f in features if f["f1"] is not None]
    assert np.mean(f1) == pytest.approx(evaluation.value("F1"))


def test_the_same_seed_gives_the_same_table(run: Run, evaluation: SuiteResult) -> None:
    assert measured(run) == evaluation
    other = measured(run, seed=1)
    chosen = [[f["feature"] for f in r.series["features"]] for r in (evaluation, other)]
    assert chosen[0] != chosen[1]


def test_nothing_is_learnt_from_held_out_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[str] = []
    stream = Subject.stream

    def watching(subject: Subject, part: Any) -> Any:
        parts.append(part)
        return stream(subject, part)

    monkeypatch.setattr(Subject, "stream", watching)
    learnt = explanations.explain_features

    def learning(*args: Any, **options: Any) -> Any:
        assert "held_out" not in parts
        return learnt(*args, **options)

    monkeypatch.setattr(explanations, "explain_features", learning)
    measured(run, loss_tokens=0)
    assert "held_out" in parts


def test_without_loss_tokens_the_loss_is_left_out(run: Run, evaluation: SuiteResult) -> None:
    found = measured(run, loss_tokens=0)
    assert [row.name for row in found.table.rows] == [row.name for row in evaluation.table.rows[:5]]
    assert found.table.rows == evaluation.table.rows[:5]
    assert found.context["cross_entropy"] == {}


def test_a_transcoder_is_explained_at_its_input(lm: LM, corpus: Corpus) -> None:
    found = measured(make_transcoder(lm, corpus, skip=True), lm, corpus)
    assert found.value("F1") > 0
    ce = found.context["cross_entropy"]
    assert ce["explained dictionary"] == pytest.approx(ce["own dictionary"], abs=1)


def test_a_peers_object_is_explained_as_ours(run: Run, evaluation: SuiteResult) -> None:
    class Peer:
        def encode(self, x: Tensor) -> Tensor:
            return run.dictionary.encode(x)

        def decode(self, z: Tensor) -> Tensor:
            return run.dictionary.decode(z)

    found = measured(Peer(), run.lm, run.corpus, hookpoint="layers.1")
    assert found.table.rows[1].name == "precision" and found.value("precision") > 0.1


def test_no_number_where_it_would_mean_nothing(
    run: Run, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanations, "FEWEST", 10**6)
    assert "only 0 features" in measured(run, tokens=20).skipped
    lm = LM(tiny_bert(), tiny_tokenizer())
    found = measured(run.dictionary.coder, lm, corpus, hookpoint="layers.1", tokens=100)
    assert "predict the next" in found.skipped and not found.tables


def test_each_feature_has_an_untrained_one_of_like_density() -> None:
    counts = np.array([100, 20, 400, 21, 18, 1000, 5])
    alive = np.flatnonzero(counts >= 16)
    found = explanations.of_nearest_density(counts, alive, np.array([19, 19, 380, 2000, 21]))
    assert counts[found].tolist() == [20, 18, 400, 1000, 21]
    assert len(set(found.tolist())) == len(found)


def test_cost_is_about_what_goes_through_the_model(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [0]
    for name in ("capture", "logits"):

        def counting(lm: LM, tokens: Tensor, *args: Any, _original: Any, **options: Any) -> Any:
            seen[0] += tokens.numel()
            return _original(lm, tokens, *args, **options)

        import functools

        method = functools.partialmethod(counting, _original=getattr(LM, name))
        monkeypatch.setattr(LM, name, method)
    measured(run)
    subject = Subject(run.dictionary, run.lm, run.corpus, sizes=SIZES)
    assert 0.3 < explanations._cost(subject) / seen[0] < 3


# --- features as explanations predict them ----------------------------------------------------


def simulated(
    graphs: list[Graph], rows: TokenRows, firings: Firings, coder: SparseCoder | None = None
) -> Simulation:
    coder = coder or ReLU(4, 3).requires_grad_(False)
    return Simulation(coder, np.arange(len(graphs)), graphs, rows, firings)


def test_predictions_are_scaled_to_fit_best() -> None:
    """s = 2 on c: twice where a = 3, and once where a = 0; E[s a] / E[s^2] = 12 / 12."""
    rows = text_of(["ac", "bc", "ec"])
    firings = fired(rows, [lambda t: 3.0 * (t[-1] == 2 and t[0] != 4)] * 3)
    one, never = Graph((Pattern((2,), 2.0),)), Graph((Pattern((7,), 5.0),))
    index, places, values = simulated([one, never], rows, firings).predict(rows)
    assert index.tolist() == [0, 0, 0]
    assert places.tolist() == [7, 15, 23]
    assert values.tolist() == pytest.approx([2, 2, 2])


def test_only_what_is_explained_is_replaced() -> None:
    rows = text_of(["abc", "ab"], filler=0)
    rules = [lambda t: 2.0 * (t[-1] == 0), lambda t: 1.0 * (t[-1] == 1), lambda t: 1.0]
    firings = fired(rows, rules)
    coder = ReLU(3, 3).requires_grad_(False)
    coder.W_enc.copy_(torch.eye(3))
    coder.W_dec.copy_(torch.tensor([[1.0, 0, 0], [0, 10, 0], [0, 0, 100]]))
    x = torch.tensor([[2.0, 0, 1], [0, 1, 1], [0, 0, 1], [2, 0, 1], [0, 1, 1]])
    graphs = [Graph((Pattern((0,), 4.0),)), Graph((Pattern((2,), 1.0),))]
    made = simulated(graphs, rows, firings, coder)
    own = torch.tensor([[2.0, 0, 100], [0, 10, 100], [0, 0, 100], [2, 0, 100], [0, 10, 100]])
    assert torch.equal(made.reconstruct("own", rows)(x)[0], own)
    explained = own.clone()
    explained[:, 1] = 0  # its graph says c, on which it never fires: times 0
    torch.testing.assert_close(made.reconstruct("explained", rows)(x)[0], explained)
    ablated = torch.tensor([[0.8, 4.0, 100.0]]).expand(5, 3)
    torch.testing.assert_close(made.reconstruct("ablated", rows)(x)[0], ablated)
    made.replace_all()
    explained[:, 2] = 0
    torch.testing.assert_close(made.reconstruct("explained", rows)(x)[0], explained)


def test_scores_count_hits_by_document() -> None:
    rows = text_of(["cc", "ac", "bb"], filler=0)
    firings = fired(rows, [lambda t: 1.0 * (t[-1] == 2 and len(t) > 1)] * 3)
    made = simulated([Graph((Pattern((2,), 1.0),)), Graph((Pattern((7,), 1.0),))], rows, firings)
    scores = Scores(made, rows, firings)
    whole = scores.figures(np.ones((1, 3)))
    assert whole["recall"].tolist() == [[1, 0]]
    assert whole["precision"][0, 0] == pytest.approx(2 / 3)
    assert whole["f1"][0] == pytest.approx([0.8, 0])
    assert whole["density"][0] == pytest.approx([1 / 3, 1 / 3])
    assert whole["lift"][0, 0] == pytest.approx(2)
    first, last = scores.figures(np.array([[1.0, 0, 0], [0, 0, 1]]))["precision"][:, 0]
    assert first == 0.5 and np.isnan(last)
    assert np.isnan(whole["precision"][0, 1]) and scores.predictions == 3


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_no_set_of_tokens_is_a_better_rule(text: list[tuple[int, bool]]) -> None:
    tokens, fires = (np.array(column) for column in zip(*text, strict=True))
    rows = TokenRows(tokens[None], np.ones((1, len(tokens)), bool), np.zeros((1, len(tokens)), int))
    places = np.flatnonzero(fires)
    firings = Firings(np.array([0, len(places)]), places, np.full(len(places), 2.0))
    rule = {p.tokens[0] for p in token_rule(rows, firings, 0).patterns}
    if not len(places):
        assert rule == set()
        return

    def f1(chosen: set[int]) -> float:
        predicted = np.isin(tokens, list(chosen))
        return 2 * (predicted & fires).sum() / (predicted.sum() + fires.sum())

    subsets = itertools.chain.from_iterable(
        itertools.combinations(range(5), size) for size in range(1, 6)
    )
    assert f1(rule) == pytest.approx(max(f1(set(subset)) for subset in subsets))


def test_detection_has_known_answers() -> None:
    found = detection(*np.array([[3.0, 0, 0], [4, 0, 2], [6, 5, 0], [60, 10, 10]]))
    assert found["recall"].tolist()[:2] == [0.5, 0]
    assert found["precision"][0] == 0.75 and found["f1"].tolist() == [0.6, 0, 0]
    assert found["density"].tolist() == [0.1, 0.5, 0]
    assert found["lift"][0] == pytest.approx(7.5)
    assert np.isnan(found["recall"][2]) and np.isnan(found["precision"][1])
