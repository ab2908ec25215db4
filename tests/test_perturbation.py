"""TPP and SCR: their formulas, planted features, sabotage, and when they say nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import make_transcoder
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from monosemy.corpus import Corpus, open_labels
from monosemy.evaluation import NotMeaningful, Subject, SuiteResult, make_subject
from monosemy.evaluation.examples import DICTIONARY, UNTRAINED, Examples, Read
from monosemy.evaluation.suites import perturbation
from monosemy.lm import LM
from monosemy.metrics.balanced_probes import fit_balanced, sparse_logistic
from monosemy.metrics.perturbation import ablated_logits, probe_drops, ranked, scr_score
from monosemy.training import Run

# --- the formulas -----------------------------------------------------------------------------


def test_scores_that_are_known() -> None:
    one = scr_score(
        np.array([0.6, 0.6, 0.6]), np.array([0.8, 0.6, 0.9]), np.array([0.95, 0.95, 0.6])
    )
    assert one.round(4).tolist() == [0.5714, 0.0, 0.0]
    base = np.full(3, 0.9)
    own = np.where(np.eye(3, dtype=bool), 0.5, 0.9)
    drops = probe_drops(base[None], np.stack([own, np.full((3, 3), 0.5)]))
    np.testing.assert_allclose(drops, [[0.4, 0.4], [0.0, 0.4]], atol=1e-12)


def test_ablation_is_that_of_the_activations_the_error_kept() -> None:
    torch.manual_seed(0)
    x, z = torch.randn(5, 7, 6), torch.rand(5, 7, 9)  # 5 texts of 7 tokens
    W_dec, w = torch.randn(9, 6), torch.randn(6, 2)
    order = [4, 2, 7]
    found = ablated_logits(
        (x.mean(1) @ w).numpy(),
        z.mean(1)[:, order].numpy(),
        (W_dec[order] @ w).numpy(),
        [1, 2, 3, 50],
    )
    for count, logits in zip([1, 2, 3, 3], found, strict=True):
        mine = order[:count]
        expected = (x - z[..., mine] @ W_dec[mine]).mean(1) @ w
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_features_without_effect_are_not_ranked() -> None:
    assert ranked(np.array([0.0, 3.0, -1.0, 5.0]), 3).tolist() == [3, 1]


def test_probes_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 12) * torch.logspace(-1, 1, 12) + 3
    labels = ((x - 3) @ torch.randn(12, 2) + 3 * torch.randn(400, 2) > 4).T
    w, b = fit_balanced(x, labels)
    apart = fit_balanced(torch.stack([x, x]), labels)
    torch.testing.assert_close(apart, (w, b), rtol=1e-2, atol=1e-3)
    scaled = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    for mine, bias, y in zip(w, b, labels, strict=True):
        theirs = LogisticRegression(class_weight="balanced", tol=1e-8).fit(scaled, y.numpy())
        np.testing.assert_allclose(
            x @ mine + bias, theirs.decision_function(scaled), rtol=1e-2, atol=1e-2
        )


def test_a_sparse_probe_keeps_what_matters() -> None:
    torch.manual_seed(0)
    z = torch.randn(400, 60).relu()
    labels = torch.stack([z[:, 3] + z[:, 4] > 1, z[:, 5] > 0.7])
    weights = sparse_logistic(z, labels, 0.02, 500)
    assert set(weights[0].topk(2).indices.tolist()) == {3, 4}
    assert int(weights[1].argmax()) == 5
    assert (weights != 0).sum(1).max() < 20
    assert (sparse_logistic(z, labels, 10.0, 50) == 0).all()


# --- planted features -------------------------------------------------------------------------

TEXTS, D = 240, 16


def planted(seed: int = 0, labels: int = 4, exclusive: bool = True) -> Examples:
    """Activations that are the sum of one direction a label and noise."""
    rng = np.random.default_rng(seed)
    n = 3 * TEXTS
    if exclusive:
        true = np.eye(labels, dtype=bool)[rng.integers(labels, size=n)]
    else:
        true = rng.random((n, labels)) < 0.5
    z = np.where(true, rng.uniform(1, 2, true.shape), 0).astype(np.float32)
    x = z @ np.eye(labels, D, dtype=np.float32) + rng.normal(0, 0.1, (n, D)).astype(np.float32)
    noise = sparse.random_array((n, 8), density=0.2, rng=rng, dtype=np.float32)
    halves = [sparse.csr_array(z / 2)] * 2  # two features a label
    code = sparse.csr_array(sparse.hstack([*halves, noise]))
    document = np.arange(n) % TEXTS
    return Examples(
        of_tokens=True,
        names=tuple("abcdefgh"[:labels]),
        labels=true,
        rows=np.zeros((labels, 1), dtype=np.int64),
        document=document,
        fold=document % 4,
        x=torch.from_numpy(x),
        codes={DICTIONARY: code, UNTRAINED: sparse.csr_array(noise)},
        words={},
        length=np.zeros(n, dtype=np.int64),
        context={},
    )


def some(examples: Examples, rows: np.ndarray) -> Examples:
    return replace(
        examples,
        labels=examples.labels[rows],
        document=examples.document[rows],
        fold=examples.fold[rows],
        x=examples.x[torch.from_numpy(rows)],
        length=examples.length[rows],
        codes={name: code[rows] for name, code in examples.codes.items()},
    )


@pytest.fixture(scope="module")
def labelled(run: Run) -> Subject:
    """A subject with labels, whose examples are to be replaced."""
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(8)]
    return make_subject(run, labels=open_labels(rows), draws=100)


class Planted:
    """A dictionary that has two features for each label's direction, at any length."""

    def __init__(self, width: int, labels: int, length: float = 1.0) -> None:
        self.W_dec = torch.zeros(width, D)
        self.W_dec[: 2 * labels] = length * torch.eye(labels, D).repeat(2, 1)
        self.W_dec[2 * labels :, -1] = 0.1


def measured(
    subject: Subject,
    examples: Examples,
    monkeypatch: pytest.MonkeyPatch,
    suite: str = "run_tpp",
    length: float = 1.0,
) -> SuiteResult:
    labels = len(examples.names)
    mine = examples.codes[DICTIONARY]
    scaled = sparse.csr_array(mine / length)
    examples = replace(examples, codes={**examples.codes, DICTIONARY: scaled})
    coders = {
        DICTIONARY: Planted(mine.shape[1], labels, length),
        UNTRAINED: Planted(examples.codes[UNTRAINED].shape[1], 0),
    }
    read = Read(
        examples.of_tokens,
        examples.names,
        examples.labels,
        examples.document,
        examples.x,
        examples.codes,
        examples.words,
        examples.length,
        examples.context,
    )
    monkeypatch.setattr(perturbation, "read_of", lambda subject: read)
    monkeypatch.setattr(
        perturbation, "drawn_from", lambda subject, read, rows: some(examples, rows)
    )
    monkeypatch.setattr(perturbation, "_coders", lambda subject: coders)
    return getattr(perturbation, suite)(subject)


def test_planted_features_are_what_probes_lose(
    labelled: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(labelled, planted(), monkeypatch)
    # Without its feature a class is never said: right by half; the other classes are as they were.
    assert found.value("TPP, 2 features") == pytest.approx(0.5, abs=0.05)
    assert found.series["others"][DICTIONARY][0] == pytest.approx(0, abs=0.02)
    assert found.value("TPP, 2 features", UNTRAINED) == pytest.approx(0, abs=0.02)
    outcomes = {j.baseline: j.outcome for j in found.judgements}
    assert outcomes[UNTRAINED] == "wins against"
    longer = measured(labelled, planted(), monkeypatch, length=9.0)
    for name in ("TPP, 2 features", "TPP, 500 features"):  # directions need no unit norm
        assert longer.value(name) == pytest.approx(found.value(name), abs=1e-3)


def test_shuffled_labels_leave_nothing_to_lose(
    labelled: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = planted()
    shuffled = np.random.default_rng(1).permutation(examples.labels)
    found = measured(labelled, replace(examples, labels=shuffled), monkeypatch)
    assert found.value("TPP, 2 features") == pytest.approx(0, abs=0.05)
    assert max(found.context["accuracy"].values()) < 0.6


def test_a_planted_cue_is_removed(labelled: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = planted(labels=2, exclusive=False)
    examples.x[:, 0] *= 0.5  # the cue is the easier to see
    found = measured(labelled, examples, monkeypatch, "run_scr")
    (pair,) = found.context["pairs"].values()
    assert (pair["target"], pair["cue"]) == ("a", "b")
    assert pair["biased_accuracy"] < 0.95 < pair["oracle_accuracy"]
    assert found.value("SCR about the mean, 2 features") == pytest.approx(1, abs=0.1)
    assert found.value("SCR about the mean, 2 features", UNTRAINED) == pytest.approx(0, abs=0.1)
    # The cue's feature at zero, all texts that have it look like those that have nothing.
    assert found.value("SCR, 2 features") < 0.5
    counts = perturbation.COUNTS
    assert pair["zeroed"] == [found.value(f"SCR, {n} features") for n in counts]


# --- on text ----------------------------------------------------------------------------------


def test_labelled_documents_are_measured(lm: LM, run: Run) -> None:
    words = {"fox": "The quick brown fox jumps", "file": "with open(path) as file", "loop": "for i"}
    rows = [
        {"text": f"{text} {i} over {i * 7}", "label": [name, "odd" if i % 2 else "even"]}
        for i in range(60)
        for name, text in words.items()
    ]
    subject = make_subject(run, labels=open_labels(rows), draws=50, sizes={"classes": [*words]})
    found = perturbation.run_tpp(subject)
    assert found.context["classes"] == dict.fromkeys(words, 60)
    assert min(found.context["accuracy"].values()) > 0.9
    assert found.table.columns == perturbation.COLUMNS
    for row in found.table.rows:
        for cell in row.values:
            assert cell is not None and cell.low <= cell.value <= cell.high


# --- when they say nothing --------------------------------------------------------------------


def test_labels_that_never_meet_have_no_cue(
    labelled: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotMeaningful, match="of 6 pairs of labels none has 20 examples"):
        measured(labelled, planted(), monkeypatch, "run_scr")


def test_bias_must_cost_something(labelled: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = planted(labels=2, exclusive=False)
    noise = replace(examples, x=torch.randn(examples.x.shape))
    with pytest.raises(NotMeaningful, match="no bias to remove"):
        measured(labelled, noise, monkeypatch, "run_scr")


def test_labels_that_are_never_alone_are_no_classes(
    labelled: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = planted(labels=2)
    both = replace(examples, labels=np.repeat(examples.labels[:, :1], 2, axis=1))
    with pytest.raises(NotMeaningful, match="two classes are needed"):
        measured(labelled, both, monkeypatch)


def test_a_transcoder_writes_elsewhere(lm: LM, corpus: Corpus) -> None:
    subject = make_subject(make_transcoder(lm, corpus), lm, corpus)
    for run_suite in (perturbation.run_tpp, perturbation.run_scr):
        with pytest.raises(NotMeaningful, match=r"write at `layers\.1\.mlp`"):
            run_suite(subject)
