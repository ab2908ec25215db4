from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from handmade import exact
from sklearn.decomposition import PCA
from torch import Tensor

from monosemy.coders import Code, SparseCoder
from monosemy.corpus import Corpus, open_corpus
from monosemy.errors import UserError
from monosemy.evaluation import Evaluation, SuiteResult, baselines, evaluate
from monosemy.evaluation.result import told
from monosemy.evaluation.suites.reconstruction import judgements_of
from monosemy.lm import LM
from monosemy.training import Run, train


@pytest.fixture(scope="module")
def evaluation(run: Run) -> SuiteResult:
    return measured(run, tokens=4000, loss_tokens=2000, draws=200)


def measured(*args: Any, **settings: Any) -> SuiteResult:
    return evaluate(*args, suites=["reconstruction"], **settings)["reconstruction"]


def test_every_figure_stands_beside_its_baselines(evaluation: SuiteResult) -> None:
    assert evaluation.table.columns[0] == "dictionary"
    assert len(evaluation.table.columns) == 4
    names = [row.name for row in evaluation.table.rows]
    ce = evaluation.context["ce"]
    assert 0 < evaluation.value("KL") < min(evaluation.context["kl"].values())
    increase = evaluation.value("CE") - ce["original"]
    assert increase == pytest.approx(evaluation.value("CE increase"))
    recovered = (ce["zero"] - evaluation.value("CE")) / (ce["zero"] - ce["original"])
    assert recovered == pytest.approx(evaluation.value("loss recovered (zero)"))
    assert {"FVU", "CE", "CE increase", "loss recovered (mean)", "KL", "L0"} <= set(names)
    for row in evaluation.table.rows:
        for cell in row.values:
            assert cell is None or (cell.low <= cell.high and np.isfinite(cell.value))


def test_the_dictionary_beats_an_untrained_one(evaluation: SuiteResult) -> None:
    assert evaluation.value("FVU") < evaluation.value("FVU", "untrained dictionary") < 1
    assert "wins against" in evaluation.verdict
    assert f"{evaluation.context['documents']} documents" in evaluation.verdict


def test_only_held_out_documents_are_used(run: Run, evaluation: SuiteResult) -> None:
    held_out = sum(1 for _ in run.corpus.documents("held_out"))
    assert evaluation.context["documents"] <= held_out


def test_all_of_it_is_json(evaluation: SuiteResult) -> None:
    whole = Evaluation([evaluation], {"formulas": "1"})
    assert json.loads(json.dumps(whole.to_dict())) == whole.to_dict()
    assert "FVU" in repr(whole) and "Verdict" in repr(whole)
    assert "<table>" in whole._repr_html_()


def test_the_same_seed_gives_the_same_table(run: Run, evaluation: SuiteResult) -> None:
    assert measured(run, tokens=4000, loss_tokens=2000, draws=200) == evaluation


def test_an_exact_dictionary_recovers_everything(lm: LM, corpus: Corpus) -> None:
    found = measured(exact(lm, corpus, "layers.1"), lm, corpus, tokens=1500, loss_tokens=1500)
    assert found.value("FVU") == pytest.approx(0, abs=1e-9)
    assert found.value("CE increase") == pytest.approx(0, abs=1e-6)
    assert found.value("loss recovered (mean)") == pytest.approx(1)
    assert found.value("KL") == pytest.approx(0, abs=1e-6)


def test_every_token_is_encoded_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the fingerprint, and where the loss is measured."""
    kind, seen = type(run.dictionary.coder), [0]
    encode = kind.encode_sparse

    def counting(coder: SparseCoder, x: Tensor) -> Code:
        seen[0] += len(x) if coder is run.dictionary.coder else 0
        return encode(coder, x)

    monkeypatch.setattr(kind, "encode_sparse", counting)
    found = measured(run, tokens=2000, loss_tokens=0, draws=20)
    fingerprint = len(run.dictionary.fingerprint.strongest)
    assert seen[0] == found.context["tokens"] + fingerprint


def test_pca_equals_scikit_learns() -> None:
    x = torch.randn(500, 20) @ torch.randn(20, 20) + 5
    ours, l0 = baselines.pca(x, 6)(x)
    theirs = PCA(6, svd_solver="full").fit(x.double().numpy())
    expected = theirs.inverse_transform(theirs.transform(x.double().numpy()))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-3)
    assert (l0 == 6).all()


def test_all_neurons_kept_is_exact_and_more_are_never_worse() -> None:
    x = torch.randn(200, 12) + 3
    errors = [(baselines.raw_neurons(x, k)(x)[0] - x).square().sum(1) for k in range(1, 13)]
    assert errors[-1].max() < 1e-9
    for fewer, more in itertools.pairwise(errors):
        assert (more <= fewer + 1e-6).all()


def test_untrained_dictionary_is_scaled_at_its_best() -> None:
    x = torch.randn(2000, 16) + 2
    xhat, _ = baselines.of_coder(baselines.untrained_coder(x, 64, 4, seed=0))(x)
    error = (x - xhat).square().sum()
    mean = x.mean(0)
    for factor in (0.9, 1.1):
        assert error < (x - (mean + factor * (xhat - mean))).square().sum()


def test_verdict_says_win_tie_and_loss() -> None:
    rng = np.random.default_rng(0)

    def around(value: float) -> dict[str, np.ndarray]:
        return {"fvu": value + 0.01 * rng.standard_normal(500)}

    judged = judgements_of(
        {"dictionary": around(0.3), "A": around(0.5), "B": around(0.3), "C": around(0.1)}
    )
    assert told(judged) == "on FVU it wins against A, ties with B and loses to C"
    found = Evaluation([SuiteResult("s", "S", judgements=judged)])
    assert not found.wins
    assert found.verdict == (
        "Verdict: mixed (1 of 3 comparisons won, 1 lost): on FVU it loses to C."
    )
    assert Evaluation([SuiteResult("s", "S", judgements=judged[:1])]).wins
    assert not Evaluation([SuiteResult("s", "S", judgements=judged[:2])]).wins
    assert not Evaluation([SuiteResult("s", "S")]).wins


def test_a_peers_object_is_measured_as_ours_are(run: Run, evaluation: SuiteResult) -> None:
    class Peer:
        def encode(self, x: Tensor) -> Tensor:
            return run.dictionary.encode(x)

        def decode(self, z: Tensor) -> Tensor:
            return run.dictionary.decode(z)

    settings: dict[str, Any] = {"tokens": 4000, "loss_tokens": 2000, "draws": 20}
    found = measured(Peer(), run.lm, run.corpus, hookpoint="layers.1", **settings)
    for row in ("FVU", "CE", "L0", "KL"):
        assert found.value(row) == pytest.approx(evaluation.value(row), rel=0.4)


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (object(), "has no method `encode`"),
        (torch.nn.Linear(3, 3), "has no method `encode`"),
    ],
)
def test_objects_that_are_no_dictionary_are_refused(peer: object, message: str, run: Run) -> None:
    with pytest.raises(UserError, match=message):
        measured(peer, run.lm, run.corpus, hookpoint="layers.1")
    with pytest.raises(UserError, match="does not say what it belongs to"):
        measured(peer, run.lm, run.corpus)


def test_unknown_tiers_and_suites_name_those_there_are(run: Run) -> None:
    with pytest.raises(UserError, match="no suite `reconstructio`") as caught:
        evaluate(run, suites=["reconstructio"])
    assert "reconstruction" in str(caught.value.hint)
    with pytest.raises(UserError, match="no tier `fast`"):
        evaluate(run, tier="fast")


def test_text_in_memory_must_be_given_again(run: Run, lm: LM) -> None:
    with pytest.raises(UserError, match="held in memory"):
        evaluate(run.dictionary, lm)


def test_a_corpus_without_held_out_text_is_refused(lm: LM) -> None:
    with pytest.raises(UserError, match="held-out"):
        train(lm, open_corpus(["one document only, " * 50]), **SMALL)


def test_other_text_can_be_used(run: Run, corpus: Corpus) -> None:
    other = open_corpus([f"some prose number {i}, " * 9 for i in range(40)], held_out=0.5)
    found = measured(run, data=other, tokens=500, loss_tokens=200, draws=20)
    assert found.context["documents"] <= 40


def test_public_names_stay_functions_whatever_is_imported() -> None:
    """A submodule of the same name would take a function's place once it is imported."""
    import importlib

    import monosemy

    for name in monosemy.__all__:
        getattr(monosemy, name)
    for module in ("evaluation", "training", "report", "interpret", "intervene", "coders"):
        importlib.import_module(f"monosemy.{module}")
    for name in monosemy.__all__:
        assert callable(getattr(monosemy, name)), name
