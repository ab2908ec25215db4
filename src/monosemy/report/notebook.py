"""Features in a notebook: `features[28]` shows a card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monosemy.evaluation import open_dictionary_corpus
from monosemy.interpret import Features, FeatureView, build_features, choose_features
from monosemy.lm import LM
from monosemy.report.card import card_html


@dataclass(frozen=True, slots=True)
class Card:
    """One feature, shown as a card by a notebook."""

    view: FeatureView

    def _repr_html_(self) -> str:
        return card_html(self.view)


@dataclass(frozen=True, slots=True)
class Book:
    """All features; `book[28]` is a card, iterating goes over the twenty most telling."""

    features: Features
    chosen: list[int]

    def __getitem__(self, feature: int) -> Card:
        """Return a feature's card.

        Raises:
            UserError: there is no feature of that number.
        """
        return Card(self.features[feature])

    def __iter__(self) -> Iterator[Card]:
        return (self[feature] for feature in self.chosen)

    def _repr_html_(self) -> str:
        return "".join(card_html(self.features[feature]) for feature in self.chosen[:5])

    def __repr__(self) -> str:
        live, width = len(self.features.live), len(self.features)
        return f"Book({live} of {width} features live, most telling: {self.chosen})"


def features(
    dictionary: Any, lm: LM | None = None, data: Any = None, *, tokens: int = 100_000
) -> Book:
    """Look at every feature of a dictionary over held-out text.

    Args:
        dictionary: a dictionary, or a run.
        lm: the model; default the run's, or the one the dictionary names.
        data: a corpus; default the one the dictionary was trained on.
        tokens: held-out tokens to look at.

    Raises:
        UserError: the dictionary does not fit the model, or there is no held-out text.
    """
    run = dictionary
    dictionary = getattr(run, "dictionary", run)
    lm = lm or getattr(run, "lm", None) or LM(dictionary.provenance.model)
    corpus = open_dictionary_corpus(run, data)
    found = build_features(dictionary, lm, corpus, tokens=tokens)
    return Book(found, choose_features(found))
