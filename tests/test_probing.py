"""Sparse probing and 1-D probe loss: planted features, and what sabotage does to the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monosemy.coders import TopK
from monosemy.corpus import Corpus, open_corpus, open_labels
from monosemy.evaluation import SuiteResult, evaluate, make_subject
from monosemy.evaluation.examples import DICTIONARY, FOLDS, UNTRAINED, Examples
from monosemy.evaluation.subject import Subject
from monosemy.evaluation.suites import probe_loss, probing
from monosemy.training import Run

N, TEXTS, CONCEPTS, WIDTH, D = 480, 24, 12, 96, 32


@pytest.fixture(scope="module", autouse=True)
def fewer_features() -> Iterator[None]:
    """Probes of 128 features take most of the time, and show nothing more here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "KS", (1, 2, 5, 16))
        yield


def planted(seed: int = 0) -> Examples:
    """Examples of which the dictionary's first features are the concepts; the rest is noise."""
    rng = np.random.default_rng(seed)
    labels = rng.random((N, CONCEPTS)) < 0.5
    document = np.arange(N) % TEXTS
    code = rng.random((N, WIDTH)) * (rng.random((N, WIDTH)) < 0.1)
    code[:, :CONCEPTS] = labels
    noise = rng.random((N, WIDTH)) * (rng.random((N, WIDTH)) < 0.1)
    words = sparse.csr_array(rng.poisson(0.3, (N, 40)).astype(float))
    x = 0.3 * rng.normal(size=(N, D)) + labels @ rng.normal(size=(CONCEPTS, D))
    rows = [_balanced(labels[:, c]) for c in range(CONCEPTS)]
    filled = np.full((CONCEPTS, max(map(len, rows))), -1)
    for into, row in zip(filled, rows, strict=True):
        into[: len(row)] = row
    return Examples(
        of_tokens=True,
        names=tuple("abcdefghijkl"),
        labels=labels,
        rows=filled,
        document=document,
        fold=document % FOLDS,
        x=torch.from_numpy(x).float(),
        codes={
            DICTIONARY: sparse.csr_array(code.astype(np.float32)),
            UNTRAINED: sparse.csr_array(noise.astype(np.float32)),
        },
        words={"token identity": words},
        length=rng.integers(0, 50, N),
        context={},
    )


def _balanced(true: np.ndarray) -> np.ndarray:
    size = min(true.sum(), (~true).sum())
    return np.sort(np.concatenate([np.flatnonzero(true)[:size], np.flatnonzero(~true)[:size]]))


@pytest.fixture(scope="module")
def subject(run: Run) -> Subject:
    return make_subject(run, draws=200)


def probed(subject: Subject, examples: Examples) -> SuiteResult:
    subject = replace(subject)
    subject._kept["examples"] = examples
    return probing.run(subject)


def scored(subject: Subject, examples: Examples, k: int) -> float:
    """AUROC of the dictionary's k best features alone."""
    tasks = probing.Tasks.of(examples)
    probe = probing._sparse(examples.codes[DICTIONARY], (k,))
    return probing._Scorer(subject, tasks).of(tasks, probe)[str(k)].points["AUROC"]


@pytest.fixture(scope="module")
def result(subject: Subject) -> SuiteResult:
    return probed(subject, planted())


def test_a_feature_equal_to_the_label_is_perfect_alone(result: SuiteResult) -> None:
    for figure in ("AUROC", "F1", "balanced accuracy"):
        assert result.value(f"{figure}, k=1") == 1
    assert result.series["feature"] == list(range(CONCEPTS))
    assert {j.outcome for j in result.judgements} == {"wins against"}
    assert {j.baseline for j in result.judgements} == {UNTRAINED, "raw neurons"}


def test_every_figure_stands_beside_its_baselines(result: SuiteResult) -> None:
    for table in result.tables:
        for row in table.rows:
            for cell in row.values:
                assert cell is not None and 0 <= cell.low <= cell.value <= cell.high <= 1
    assert result.value("AUROC", "dense probe") > 0.9
    assert result.value("AUROC", "difference of means") > 0.9
    assert 0.4 < result.value("AUROC", "position") < 0.6
    assert 0.4 < result.value("AUROC", "token identity") < 0.6
    # Probes that see everything are told of, and judge nothing.
    assert "dense probe" in result.verdict


def test_permuted_labels_give_chance(result: SuiteResult) -> None:
    row = next(r for r in result.table.rows if r.name.endswith("labels permuted"))
    for cell in row.values:
        assert cell is not None and cell.low < 0.5 < cell.high


def test_shuffled_labels_take_the_win_away(subject: Subject) -> None:
    examples = planted()
    shuffled = np.random.default_rng(1).permutation(examples.labels)
    rows = np.tile(np.arange(N), (CONCEPTS, 1))
    found = probed(subject, replace(examples, labels=shuffled, rows=rows))
    assert found.value("AUROC, k=1") == pytest.approx(0.5, abs=0.05)
    assert {j.outcome for j in found.judgements} == {"ties with"}


def test_a_leaked_text_would_raise_the_score(subject: Subject) -> None:
    """Features that know texts by heart: worth nothing in folds that share no text."""
    examples = planted()
    kind = np.random.default_rng(0).permutation(TEXTS) % 2 == 0
    labels = np.repeat(kind[examples.document][:, None], 1, axis=1)
    by_heart = sparse.csr_array(np.eye(WIDTH, dtype=np.float32)[examples.document])
    honest = replace(
        examples,
        names=("kind",),
        labels=labels,
        rows=np.arange(N)[None],
        codes={DICTIONARY: by_heart, UNTRAINED: examples.codes[UNTRAINED]},
    )
    leaked = replace(honest, fold=np.random.default_rng(0).permutation(np.arange(N) % FOLDS))
    assert scored(subject, leaked, 16) > 0.8
    assert scored(subject, honest, 16) < 0.6


def test_no_test_label_chooses_a_feature() -> None:
    examples = planted(3)
    tasks = probing.Tasks.of(examples)
    code = examples.codes[UNTRAINED]
    train = tasks.there & (tasks.fold != 0)
    chosen = probing.choose_features(code, tasks, train, 16)
    flipped = replace(tasks, y=np.where(train, tasks.y, ~tasks.y) & tasks.there)
    assert (probing.choose_features(code, flipped, train, 16) == chosen).all()
    assert (probing.choose_features(code, flipped, tasks.there, 16) != chosen).any()


def test_the_scale_of_a_feature_does_not_matter() -> None:
    examples = planted(3)
    tasks = probing.Tasks.of(examples)
    code = examples.codes[UNTRAINED]
    scaled = sparse.csr_array(code * np.geomspace(1e-3, 1e3, WIDTH, dtype=np.float32)[None])
    both = [probing.choose_features(c, tasks, tasks.there, 8) for c in (code, scaled)]
    assert (both[0] == both[1]).all()


def test_probes_are_scikit_learns(subject: Subject) -> None:
    """Chosen features, standardised, C = 1: AUROC of each fold, weighted by its positives."""
    examples = planted(5)
    tasks = probing.Tasks.of(examples)
    code = examples.x.numpy()
    found = probing._Scorer(subject, tasks).of(tasks, probing._sparse(code, (5,)))["5"]
    for c in range(3):
        there, total, positives = tasks.there[c], 0.0, 0
        for fold in range(FOLDS):
            test, others = there & (tasks.fold[c] == fold), tasks.there & (tasks.fold != fold)
            train = others[c]
            features = probing.choose_features(code, tasks, others, 5)[c]
            values = code[tasks.rows[c]][:, features]
            theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1, tol=1e-8))
            theirs.fit(values[train], tasks.y[c, train])
            truth = tasks.y[c, test]
            score = roc_auc_score(truth, theirs.decision_function(values[test]))
            total, positives = total + score * truth.sum(), positives + truth.sum()
        assert found.each[c] == pytest.approx(total / positives, abs=1e-3)


# --- 1-D probe loss ---------------------------------------------------------------------------


def test_probe_loss_finds_the_planted_channel(subject: Subject) -> None:
    examples = planted()
    x = torch.randn(N, D)
    x[:, 0] = torch.from_numpy(examples.labels[:, 0]).float() + 0.3 * torch.randn(N)
    subject = replace(subject)
    subject._kept["examples"] = replace(examples, x=x)
    subject._kept["untrained"] = TopK(D, WIDTH, k=8).requires_grad_(False)
    found = probe_loss.run(subject)
    neurons = found.series["loss"]["raw neurons"]
    assert neurons[0] < 0.35 and min(neurons[1:]) > 0.6
    for column in probe_loss.COLUMNS:
        same = found.value("probe loss", column)
        assert same <= found.value("probe loss, labels permuted", column) < 0.6932
        assert found.value("probe loss, held out", column) > same
    # As in the paper: the least over features, by brute force.
    rows = examples.rows[1][examples.rows[1] >= 0]
    fits = [
        LogisticRegression(C=1e6).fit(x[rows, i : i + 1], examples.labels[rows, 1])
        for i in range(D)
    ]
    losses = [
        -fit.predict_log_proba(x[rows, i : i + 1])[
            np.arange(len(rows)), examples.labels[rows, 1].astype(int)
        ].mean()
        for i, fit in enumerate(fits)
    ]
    mine = probe_loss._same(x[rows].T.contiguous(), torch.from_numpy(examples.labels[rows, 1]))
    assert mine.mean() == pytest.approx(min(losses), abs=1e-4)


# --- end to end -------------------------------------------------------------------------------


def test_both_suites_on_labelled_documents(run: Run) -> None:
    words = {"red": "apple rose fire", "blue": "sea sky ice"}
    rows = [
        {"text": f"{text} {i}", "label": name} for i in range(60) for name, text in words.items()
    ]
    subject = make_subject(run, labels=open_labels(rows), draws=100)
    subject._kept["untrained"] = TopK(D, WIDTH, k=8).requires_grad_(False)
    both = probing.run(subject)
    assert both.context["unit"] == "document" and both.series["concepts"] == ["blue", "red"]
    assert both.value("AUROC", "bag of tokens") == 1
    assert both.value("AUROC, k=5") > 0.9
    assert probe_loss.run(subject).value("probe loss, held out") < 0.4
    assert "length" in both.tables[1].columns


def test_prose_without_labels_is_not_probed(run: Run) -> None:
    prose: Corpus = open_corpus([f"Once upon {i} times." for i in range(80)], held_out=0.25)
    found = evaluate(run, data=prose, suites=["probing", "probe_loss"])
    for suite in ("probing", "probe_loss"):
        assert "give labelled text with --labels" in found[suite].skipped
