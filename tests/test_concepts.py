"""Names of features are what is true of the text where they fire, and chance earns none."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from monosemy.corpus import CONCEPTS, Document, label_tokens, open_labels
from monosemy.errors import UserError
from monosemy.index.text import TokenRecorder
from monosemy.interpret import (
    NO_CONCEPT,
    ConceptTable,
    Firings,
    PlaceLabels,
    build_features,
    label_index,
    label_places,
    score_features,
)
from monosemy.interpret.concepts import syntax_of
from monosemy.training import Run


def firings_of(z: np.ndarray) -> Firings:
    """Return activations [width, places] feature by feature."""
    feature, place = np.nonzero(z)
    offsets = np.searchsorted(feature, np.arange(len(z) + 1))
    return Firings(offsets, place.astype(np.int32), z[feature, place].astype(np.float32))


def runs(rng: np.random.Generator, rows: int, documents: int, rate: float) -> np.ndarray:
    """Return values that come in runs of ten tokens, in documents of 200, of some more than others.

    [rows, documents * 200]
    """
    rates = rng.gamma(0.5, rate / 0.5, (rows, documents)).clip(0, 0.9)
    each = rng.random((rows, documents, 20)) < rates[:, :, None]
    return np.repeat(each.reshape(rows, -1), 10, 1)


def labels_of(labels: np.ndarray) -> PlaceLabels:
    names = tuple(f"concept {i}" for i in range(len(labels)))
    return PlaceLabels(names, labels, np.repeat(np.arange(labels.shape[1] // 200), 200))


@pytest.fixture(scope="module")
def labels() -> PlaceLabels:
    return labels_of(runs(np.random.default_rng(0), 4, 60, 0.1))


@pytest.fixture(scope="module")
def table(labels: PlaceLabels) -> ConceptTable:
    """Features: concept 2 itself, a third of concept 1's tokens, everywhere, noise, silence."""
    rng = np.random.default_rng(1)
    third = labels.labels[1] & (np.arange(labels.labels.shape[1]) % 3 == 0)
    z = np.stack(
        [
            labels.labels[2] * 2.0,
            third * 1.5,
            np.ones(len(third)),
            runs(rng, 1, 60, 0.1)[0] * 1.0,
            np.zeros(len(third)),
        ]
    )
    return score_features(firings_of(z), labels)


def test_planted_features_are_named(table: ConceptTable) -> None:
    rows = {row["feature"]: row for row in table.rows()}
    assert list(rows) == [0, 1, 2, 3]  # a silent feature has no row
    assert [row["label"] for row in rows.values()] == [
        "concept 2",
        "part of concept 1",
        NO_CONCEPT,
        NO_CONCEPT,
    ]
    assert rows[0]["concept"] == "concept 2"
    assert rows[0]["f1"] == rows[0]["auroc"] == 1
    assert rows[0]["q"] < 0.001
    part = rows[1]["part_of"]
    assert (part["concept"], part["precision"]) == ("concept 1", 1)
    assert part["recall"] == pytest.approx(1 / 3, abs=0.02)
    assert rows[3]["part_of"] is None
    json.dumps(list(rows.values()), allow_nan=False)


def test_best_features_of_concepts(table: ConceptTable) -> None:
    found = {row["concept"]: row for row in table.concepts()}
    assert found["concept 2"]["features"][0]["feature"] == 0
    assert found["concept 1"]["features"][0]["feature"] == 1
    assert [name for name, row in found.items() if row["covered"]] == ["concept 2"]
    json.dumps(list(found.values()), allow_nan=False)
    assert table.coverage == {
        "concepts": 4,
        "covered": 0.25,
        "live": 4,
        "labelled": 0.5,
        "part": 0.5,
    }


def nearest_lift(table: ConceptTable) -> float:
    """Return the mean lift of features for the concepts that suited them best."""
    return float(np.nanmean(table.scores.best.reported["lift"][np.arange(40), table.nearest]))


def test_chance_earns_no_name() -> None:
    """Features and labels come in runs, as in text, and have nothing to do with each other.

    Some go together by luck on the half to choose on; on the other half they do no more. Where
    both halves are the same text they do, so that mixing halves would be seen here.
    """
    rng = np.random.default_rng(0)
    z, y = runs(rng, 40, 40, 0.05) * 1.0, runs(rng, 10, 40, 0.05)
    apart = score_features(firings_of(z), labels_of(y))
    assert not (apart.matches | apart.parts).any()
    assert {row["label"] for row in apart.rows()} == {NO_CONCEPT}
    assert nearest_lift(apart) == pytest.approx(1, abs=0.2)
    z, y = (a.reshape(len(a), 40, 200).repeat(2, 1).reshape(len(a), -1) for a in (z, y))
    assert nearest_lift(score_features(firings_of(z), labels_of(y))) > 1.5


def test_documents_fall_in_equal_halves(labels: PlaceLabels) -> None:
    document = np.where(labels.document % 3 == 0, -1, labels.document)  # a third is not known
    half = PlaceLabels(labels.names, labels.labels, document).half
    assert (half == -1).sum() == (document == -1).sum()
    assert (half == 0).sum() == (half == 1).sum() == (document >= 0).sum() / 2
    for part in (0, 1):
        others = document[(half == 1 - part)]
        assert not np.isin(document[half == part], others).any()


def test_labels_of_places_are_those_of_batches(run: Run) -> None:
    stream = run.dictionary.provenance.stream(run.lm, run.corpus, "held_out")
    recorder, expected, known = TokenRecorder(), [], []
    for batch in itertools.islice(stream, 4):
        recorder.add(batch)
        true, sure = label_tokens(batch, syntax_of, tuple(CONCEPTS))
        expected.append(true.flatten(1).numpy())
        known.append((sure & batch.counted).flatten().numpy())
    documents = [Document(*pair) for pair in zip(recorder.names, recorder.texts, strict=True)]
    text = recorder.columns()
    places = (text[name] for name in ("document", "start", "end", "counted"))
    found = label_places(*places, documents)
    sure = np.concatenate(known)
    np.testing.assert_array_equal(found.document >= 0, sure)
    np.testing.assert_array_equal(found.labels[:, sure], np.concatenate(expected, 1)[:, sure])
    assert sure.sum() > 100
    assert found.names == tuple(CONCEPTS)


def test_own_labels() -> None:
    """A feature that fires in documents of one class is named by it."""
    rows = [{"text": f"x{i} = {i}\n" * 9, "label": ["odd", "even"][i % 2]} for i in range(80)]
    corpus = open_labels(rows)
    documents = list(corpus.documents("all"))
    number = np.repeat(np.arange(80), 9)
    start = np.tile(np.arange(9), 80)
    true = np.array([corpus.labels(d) == ("odd",) for d in documents])[number]
    found = label_places(
        number, start, start + 1, np.ones(720, bool), documents, corpus.spans, corpus.classes
    )
    np.testing.assert_array_equal(found.labels, [~true, true])
    # Documents alternate between classes and halves: take them in another order.
    order = np.random.default_rng(0).permutation(80)
    shuffled = PlaceLabels(found.names, found.labels, order[number])
    names = [row["label"] for row in score_features(firings_of(true[None] * 1.0), shuffled).rows()]
    assert names == ["odd"]


def test_text_without_labels_is_refused() -> None:
    documents = [
        Document("a", "no source :"),
        Document("b", "x = 1\n"),
        Document("c", "nor this :"),
    ]
    number, start = np.arange(3), np.zeros(3, int)
    with pytest.raises(UserError, match="1 of 3 documents have labels") as caught:
        label_places(number, start, start + 1, np.ones(3, bool), documents)
    assert "Python source" in caught.value.hint


def test_a_trained_dictionary(run: Run) -> None:
    """From text to names, and the same figures by the way round through concepts."""
    found = build_features(run.dictionary, run.lm, run.corpus, part="all", tokens=4000)
    index = found.index
    firings = Firings(index.offsets, index.places, index.values)
    labels = label_index(index)
    table = score_features(firings, labels)
    named = [row for row in table.rows() if row["label"] in CONCEPTS]
    assert named
    reported = labels.half == 1
    for row in named:
        y = labels.labels[labels.names.index(row["concept"])][reported]
        places, values = firings.of(row["feature"])
        z = np.zeros(len(reported))
        z[places] = values
        above = z[reported] > row["threshold"]
        assert row["f1"] == pytest.approx(2 * (y & above).sum() / (y.sum() + above.sum()), rel=1e-4)
        assert row["f1"] >= 0.5
        assert row["q"] <= 0.05
