"""What a feature means: where it fires, how strongly, and what it writes."""

from monosemy.interpret.choose import choose_features
from monosemy.interpret.concepts import (
    NO_CONCEPT,
    ConceptTable,
    PlaceLabels,
    label_places,
    score_features,
)
from monosemy.interpret.features import Features, collect_features
from monosemy.interpret.firings import Firings, TokenRows, collect_firings
from monosemy.interpret.graph import Graph, Matcher, Pattern
from monosemy.interpret.logit_lens import logit_lens
from monosemy.interpret.n2g import activate_in, explain_features
from monosemy.interpret.text import TextTable
from monosemy.interpret.view import Exemplar, FeatureView

__all__ = [
    "NO_CONCEPT",
    "ConceptTable",
    "Exemplar",
    "FeatureView",
    "Features",
    "Firings",
    "Graph",
    "Matcher",
    "Pattern",
    "PlaceLabels",
    "TextTable",
    "TokenRows",
    "activate_in",
    "choose_features",
    "collect_features",
    "collect_firings",
    "explain_features",
    "label_places",
    "logit_lens",
    "score_features",
]
