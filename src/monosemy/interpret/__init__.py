"""What a feature means: where it fires, how strongly, and what it writes."""

from monosemy.index import Exemplar, FeatureView
from monosemy.interpret.choose import choose_features
from monosemy.interpret.concepts import (
    NO_CONCEPT,
    ConceptTable,
    PlaceLabels,
    label_index,
    label_places,
    score_features,
)
from monosemy.interpret.features import Features, build_features, join_features
from monosemy.interpret.firings import Firings, TokenRows, collect_firings
from monosemy.interpret.graph import Graph, Matcher, Pattern
from monosemy.interpret.logit_lens import logit_lens
from monosemy.interpret.n2g import activate_in, explain_features

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
    "TokenRows",
    "activate_in",
    "build_features",
    "choose_features",
    "collect_firings",
    "explain_features",
    "join_features",
    "label_index",
    "label_places",
    "logit_lens",
    "score_features",
]
