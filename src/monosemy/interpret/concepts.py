"""Features named by what is known to be true of the text: syntax, or anybody's labels.

Documents are split in two halves. On one, each feature's threshold for each concept is chosen, and
which concept suits it; all figures are of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
            true = label_document(text, start[mine], end[mine], spans, names)
            if true is not None and len(mine):
                labels[:, mine], known[mine] = true, number
                found += 1
            task.advance(1)
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
    """The same of those of which it is a part there, by precision and lift; -1: of none."""
    best: Int[np.ndarray, "concepts best"]
    """Features of the best F1 for each concept on the half to choose on, the best first."""
    q: Float[np.ndarray, "width concepts"]
    """False discovery rate at which a pair still counts; NaN of those that were not tested."""

    @property
    def matches(self) -> Bool[np.ndarray, "width concepts"]:
        """Which features are named for which concepts."""
        return (self.q <= MOST_FALSE) & (self.scores.reported["f1"] >= MATCH_F1)

    @property
    def parts(self) -> Bool[np.ndarray, "width concepts"]:
        """Which features fire where concepts are true and hardly elsewhere."""
        return (self.q <= MOST_FALSE) & _precise(self.scores.reported)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what is known of each live feature, as JSON values.

        `label` is the name of the concept it stands for, `part of` one, or `NO_CONCEPT`; `concept`
        is the nearest, with figures even where these are too low for a label; `part_of` holds the
        same of the concept of which it is a part, or None.
        """
        matches, parts = self.matches, self.parts
        for feature in np.flatnonzero(self.live).tolist():
            nearest, whole = int(self.nearest[feature]), int(self.whole[feature])
            part = whole >= 0 and bool(parts[feature, whole])
            label = NO_CONCEPT
            if matches[feature, nearest]:
                label = self.names[nearest]
            elif part:
                label = f"part of {self.names[whole]}"
            yield {
                "feature": feature,
                "label": label,
                **self._pair(feature, nearest),
                "part_of": self._pair(feature, whole) if part else None,
            }

    def concepts(self) -> Iterator[dict[str, Any]]:
        """Yield for each concept that is true anywhere its best features, as JSON values."""
        for concept in np.flatnonzero(self.base_rate).tolist():
            yield {
                "concept": self.names[concept],
                "base_rate": float(self.base_rate[concept]),
                "covered": bool(self.covered[concept]),
                "features": [
                    {"feature": feature, **self._pair(feature, concept)}
                    for feature in self.best[concept].tolist()
                ],
            }

    @property
    def covered(self) -> Bool[np.ndarray, " concepts"]:
        """For which concepts the best feature, by the half to choose on, stands."""
        each = np.arange(len(self.names))
        return self.scores.reported["f1"][self.best[:, 0], each] >= MATCH_F1

    @property
    def coverage(self) -> dict[str, float]:
        """How many concepts and features go together.

        `concepts` are those neither rare nor everywhere (`RATES`), `covered` the share of them with
        a feature of F1 0.5 or more; `live` the features that fire, `labelled` the share of them
        with a label of any kind, `part` the share of precision 0.8 and lift 5 or more.
        """
        asked = (self.base_rate >= RATES[0]) & (self.base_rate <= RATES[1])
        rows = list(self.rows())
        return {
            "concepts": int(asked.sum()),
            "covered": float(self.covered[asked].mean()) if asked.any() else 0.0,
            "live": len(rows),
            "labelled": _share(row["label"] != NO_CONCEPT for row in rows),
            "part": _share(row["part_of"] is not None for row in rows),
        }

    def _pair(self, feature: int, concept: int) -> dict[str, Any]:
        figures = {name: a[feature, concept] for name, a in self.scores.reported.items()}
        figures["threshold"] = self.scores.threshold[feature, concept]
        figures["q"] = self.q[feature, concept]
        return {
            "concept": self.names[concept],
            **{name: float(v) if np.isfinite(v) else None for name, v in figures.items()},
        }


def score_features(firings: Firings, labels: PlaceLabels) -> ConceptTable:
    """Find what each feature of a dictionary stands for, among concepts that are known.

    Pairs of a feature and a concept that on one half go together well enough for a name are tested
    on the other, documents as the unit (`documents_agree`), and corrected for the number of these
    pairs (Benjamini and Hochberg 1995): what the first half rejected, the second is not asked.
    """
    half = labels.half
    scores = concept_scores(firings.offsets, firings.places, firings.values, labels.labels, half)
    f1 = np.nan_to_num(scores.chosen["f1"])
    nearest = f1.argmax(1)
    part = _precise(scores.chosen)
    whole = np.where(part.any(1), np.where(part, f1, -1).argmax(1), -1)
    best = np.argsort(-f1, axis=0, kind="stable")[:_BEST].T
    found = np.zeros(f1.shape, dtype=bool)
    found[np.arange(len(f1)), nearest] = True
    found[whole >= 0, whole[whole >= 0]] = True
    found[best, np.arange(len(best))[:, None]] = True
    found &= (f1 >= MATCH_F1) | part
    q = np.full(f1.shape, np.nan)
    chances = _chances(firings, labels, half, scores.threshold, np.argwhere(found))
    q[found] = false_discovery_control(chances) if len(chances) else chances
    base_rate = labels.labels[:, half == REPORTED].mean(1)
    return ConceptTable(
        labels.names, scores, base_rate, firings.counts > 0, nearest, whole, best, q
    )


def _chances(
    firings: Firings,
    labels: PlaceLabels,
    half: np.ndarray,
    threshold: np.ndarray,
    pairs: Int[np.ndarray, "pairs 2"],
) -> Float[np.ndarray, " pairs"]:
    """Return `documents_agree` of pairs of a feature and a concept, on the half to report on."""
    document = np.where(half == REPORTED, labels.document, -1)
    numbers, index = np.unique(document, return_inverse=True)  # -1 first

    def count(places: np.ndarray) -> np.ndarray:
        return np.bincount(index[places], minlength=len(numbers))[1:].astype(float)

    tokens = count(np.arange(len(index)))
    positives = [count(np.flatnonzero(true)) for true in labels.labels]
    found = []
    for feature, concept in pairs.tolist():
        places, values = firings.of(feature)
        above = places[values > threshold[feature, concept]]
        both = above[labels.labels[concept, above]]
        found.append(documents_agree(count(both), count(above), positives[concept], tokens))
    return np.array(found)


def _precise(figures: dict[str, np.ndarray]) -> Bool[np.ndarray, "width concepts"]:
    return (figures["precision"] >= PART_PRECISION) & (figures["lift"] >= PART_LIFT)


def _share(true: Iterable[bool]) -> float:
    return float(np.mean([*true] or [False]))
