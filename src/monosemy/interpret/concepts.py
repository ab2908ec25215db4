"""Features named by what is known to be true of the text: syntax, or anybody's labels.

Documents are split in two halves. On one, each feature's threshold for each concept is chosen, and
which concept suits it; all figures are of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control

from monosemy.corpus import CONCEPTS, Document, Spans, label_document, syntax_spans
from monosemy.errors import UserError
from monosemy.index import NO_CONCEPT, Index
from monosemy.interpret.firings import Firings
from monosemy.metrics.concepts import (
    CHOSEN,
    REPORTED,
    UNKNOWN,
    ConceptScores,
    Detections,
    concept_scores,
    documents_agree,
)
from monosemy.progress import Task

MATCH_F1 = 0.5
"""A feature is named for a concept from this F1 on."""
PART_PRECISION, PART_LIFT = 0.8, 5.0
"""It is named for a part of a concept from this precision and lift on."""
MOST_FALSE = 0.05
"""Share of names, at most, that are expected to be there by chance."""
RATES = (0.0005, 0.5)
"""Base rates of concepts that are neither rare nor everywhere."""
_BEST = 5  # features listed for a concept


@dataclass(frozen=True, slots=True)
class PlaceLabels:
    """Which concepts are true at each place of a text."""

    names: tuple[str, ...]
    labels: Bool[np.ndarray, "concepts places"]
    document: Int[np.ndarray, " places"]
    """Number of the document; -1 where labels are not known, or the token is not counted."""

    @property
    def half(self) -> Int[np.ndarray, " places"]:
        """Every second document with labels is for choosing, the others are for reporting."""
        known = np.unique(self.document[self.document >= 0])
        part = np.full(int(known.max(initial=-1)) + 2, UNKNOWN, dtype=np.int8)
        part[known[::2]], part[known[1::2]] = CHOSEN, REPORTED
        return part[self.document]  # -1 is the last, which is nobody's


def syntax_of(document: Document) -> Spans | None:
    """Return the concepts of Python source (`CONCEPTS`) in a document; None if it is none."""
    return syntax_spans(document.text)


def label_places(
    document: Int[np.ndarray, "*place"],
    start: Int[np.ndarray, "*place"],
    end: Int[np.ndarray, "*place"],
    counted: Bool[np.ndarray, "*place"],
    documents: Sequence[Document],
    spans: Callable[[Document], Spans | None] = syntax_of,
    names: Sequence[str] = tuple(CONCEPTS),
) -> PlaceLabels:
    """Say which concepts are true at every counted place of a text; each document is read once.

    Args:
        document: index into `documents`, -1 for tokens from none.
        start: first character of each token.
        end: the character after its last.
        counted: which tokens count.
        documents: the text.
        spans: where concepts are true in a document, None where nothing is known: by default those
            of Python source, or the `spans` of a `LabelledCorpus`.
        names: the concepts, such as the `classes` of a `LabelledCorpus`.

    Raises:
        UserError: fewer than two documents have labels.
    """
    origin = np.where(counted, document, -1).reshape(-1)
    order = np.argsort(origin, kind="stable")
    edges = np.searchsorted(origin[order], np.arange(len(documents) + 1))
    labels = np.zeros((len(names), origin.size), dtype=bool)
    known = np.full(origin.size, -1, dtype=np.int32)
    start, end = start.reshape(-1), end.reshape(-1)
    found = 0
    with Task("labels", max(len(documents), 1), "documents") as task:
        for number, text in enumerate(documents):
            mine = order[edges[number] : edges[number + 1]]
            task.advance(1)
            true = label_document(text, start[mine], end[mine], spans, names) if len(mine) else None
            if true is not None:
                labels[:, mine], known[mine] = true, number
                found += 1
    if found < 2:
        raise UserError(
            f"{found} of {len(documents)} documents have labels",
            "two are needed, one to choose on and one to report on: Python source, or text with "
            "labels of its own",
        )
    return PlaceLabels(tuple(names), labels, known)


def label_index(
    index: Index,
    spans: Callable[[Document], Spans | None] = syntax_of,
    names: Sequence[str] = tuple(CONCEPTS),
) -> PlaceLabels:
    """Say which concepts are true at every place of an index's text; see `label_places`.

    Raises:
        UserError: fewer than two documents have labels.
    """
    text = index.text
    documents = [Document(*pair) for pair in zip(text.names, text.texts, strict=True)]
    return label_places(text.document, text.start, text.end, text.counted, documents, spans, names)


@dataclass(frozen=True, slots=True)
class ConceptTable:
    """Every feature of a dictionary against every concept."""

    names: tuple[str, ...]
    scores: ConceptScores
    base_rate: Float[np.ndarray, " concepts"]
    """Share of the tokens reported on at which each concept is true."""
    live: Bool[np.ndarray, " width"]
    """Which features fire at all."""
    nearest: Int[np.ndarray, " width"]
    """The concept of a feature's best F1 on the half to choose on."""
    whole: Int[np.ndarray, " width"]
    """The concept, of those that a feature is precise for there, of the best F1; -1: of none."""
    features: Int[np.ndarray, "concepts best"]
    """Features of the best F1 for each concept there, the best first."""
    q: Float[np.ndarray, "width concepts"]
    """False discovery rate at which a pair still counts; NaN of those not tested."""
    whole_q: Float[np.ndarray, " width"]
    """The same of a feature and what it is a part of."""

    @property
    def matches(self) -> Bool[np.ndarray, " width"]:
        """Which features stand for the concept nearest to them."""
        each = np.arange(len(self.nearest)), self.nearest
        return (self.q[each] <= MOST_FALSE) & (self.scores.best.reported["f1"][each] >= MATCH_F1)

    @property
    def parts(self) -> Bool[np.ndarray, " width"]:
        """Which features, above a threshold, fire where a concept is true and hardly elsewhere."""
        each, reported = (np.arange(len(self.whole)), self.whole), self.scores.precise.reported
        precise = (reported["precision"][each] >= PART_PRECISION) & (
            reported["lift"][each] >= PART_LIFT
        )
        return (self.whole_q <= MOST_FALSE) & precise

    @property
    def covered(self) -> Bool[np.ndarray, " concepts"]:
        """For which concepts the best feature, by the half to choose on, stands."""
        best = self.features[:, 0], np.arange(len(self.names))
        return self.scores.best.reported["f1"][best] >= MATCH_F1

    @property
    def coverage(self) -> dict[str, float]:
        """How many concepts and features go together.

        `concepts` are those neither rare nor everywhere (`RATES`), `covered` the share of them with
        a feature of F1 0.5 or more; `live` the features that fire, `labelled` the share of them
        with a label of any kind, `part` of those of precision 0.8 and lift 5 or more.
        """
        asked = (self.base_rate >= RATES[0]) & (self.base_rate <= RATES[1])
        return {
            "concepts": int(asked.sum()),
            "covered": _share(self.covered[asked]),
            "live": int(self.live.sum()),
            "labelled": _share((self.matches | self.parts)[self.live]),
            "part": _share(self.parts[self.live]),
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what is known of each live feature, as JSON values.

        `label` is the name of the concept it stands for, `part of` one, or `NO_CONCEPT`; `concept`
        is the nearest, with figures even where these are too low for a label; `part_of` holds those
        of the concept of which it is a part, or None.
        """
        matches, parts = self.matches, self.parts
        for feature in np.flatnonzero(self.live).tolist():
            nearest, whole = int(self.nearest[feature]), int(self.whole[feature])
            label = NO_CONCEPT
            if matches[feature]:
                label = self.names[nearest]
            elif parts[feature]:
                label = f"part of {self.names[whole]}"
            part = self._pair(self.scores.precise, feature, whole, self.whole_q[feature])
            yield (
                {"feature": feature, "label": label}
                | self._best(feature, nearest)
                | {"part_of": part if parts[feature] else None}
            )

    def concepts(self) -> Iterator[dict[str, Any]]:
        """Yield for each concept that is true anywhere its best features, as JSON values."""
        for concept in np.flatnonzero(self.base_rate).tolist():
            yield {
                "concept": self.names[concept],
                "base_rate": float(self.base_rate[concept]),
                "covered": bool(self.covered[concept]),
                "features": [
                    {"feature": feature, **self._best(feature, concept)}
                    for feature in self.features[concept].tolist()
                ],
            }

    def _best(self, feature: int, concept: int) -> dict[str, Any]:
        return self._pair(self.scores.best, feature, concept, self.q[feature, concept])

    def _pair(self, by: Detections, feature: int, concept: int, q: float) -> dict[str, Any]:
        at = feature, concept
        figures = {name: a[at] for name, a in by.reported.items()}
        figures |= {"auroc": self.scores.auroc[at], "threshold": by.threshold[at], "q": q}
        known = {name: float(v) if np.isfinite(v) else None for name, v in figures.items()}
        return {"concept": self.names[concept], **known}


def score_features(firings: Firings, labels: PlaceLabels) -> ConceptTable:
    """Find what each feature of a dictionary stands for, among concepts that are known.

    Pairs of a feature and a concept that on one half go together well enough for a name are tested
    on the other, documents as the unit (`documents_agree`), and corrected for the number of these
    pairs (Benjamini and Hochberg 1995): what the first half rejected, the second is not asked.
    """
    half = labels.half
    scores = concept_scores(firings.offsets, firings.places, firings.values, labels.labels, half)
    f1 = np.nan_to_num(scores.best.chosen["f1"])
    nearest, features = f1.argmax(1), np.argsort(-f1, axis=0, kind="stable")[:_BEST].T
    found = np.zeros(f1.shape, dtype=bool)
    found[np.arange(len(f1)), nearest] = True
    found[features, np.arange(len(features))[:, None]] = True
    found &= f1 >= MATCH_F1
    part = scores.precise.chosen["lift"] >= PART_LIFT
    whole = np.where(part, scores.precise.chosen["f1"], -1).argmax(1)
    whole[~part.any(1)] = -1
    parts = np.flatnonzero(whole >= 0)

    matches = np.argwhere(found)
    pairs = np.concatenate([matches, np.stack([parts, whole[parts]], 1)])
    thresholds = [scores.best.threshold[found], scores.precise.threshold[parts, whole[parts]]]
    chances = _chances(firings, labels, half, pairs, np.concatenate(thresholds))
    adjusted = false_discovery_control(chances) if len(chances) else chances
    q, whole_q = np.full(f1.shape, np.nan), np.full(len(f1), np.nan)
    q[found], whole_q[parts] = adjusted[: len(matches)], adjusted[len(matches) :]
    return ConceptTable(
        names=labels.names,
        scores=scores,
        base_rate=labels.labels[:, half == REPORTED].mean(1),
        live=firings.counts > 0,
        nearest=nearest,
        whole=whole,
        features=features,
        q=q,
        whole_q=whole_q,
    )


def _chances(
    firings: Firings,
    labels: PlaceLabels,
    half: np.ndarray,
    pairs: Int[np.ndarray, "pairs 2"],
    thresholds: Float[np.ndarray, " pairs"],
) -> Float[np.ndarray, " pairs"]:
    """Return `documents_agree` of pairs of a feature and a concept, on the half to report on."""
    document = np.where(half == REPORTED, labels.document, -1)
    numbers, index = np.unique(document, return_inverse=True)  # -1 first

    def count(places: np.ndarray) -> np.ndarray:
        return np.bincount(index[places], minlength=len(numbers))[1:].astype(float)

    tokens = count(np.arange(len(index)))
    positives = [count(np.flatnonzero(true)) for true in labels.labels]
    found = []
    for (feature, concept), threshold in zip(pairs.tolist(), thresholds.tolist(), strict=True):
        places, values = firings.of(feature)
        above = places[values > threshold]
        both = above[labels.labels[concept, above]]
        found.append(documents_agree(count(both), count(above), positives[concept], tokens))
    return np.array(found)


def _share(true: Bool[np.ndarray, " n"]) -> float:
    return float(true.mean()) if len(true) else 0.0
