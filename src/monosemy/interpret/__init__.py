"""What a feature means: where it fires, how strongly, and what it writes."""

from monosemy.interpret.choose import choose_features
from monosemy.interpret.families import (
    FiringParents,
    Parents,
    parents_by_activation,
    parents_by_direction,
)
from monosemy.interpret.features import Features, collect_features
from monosemy.interpret.firings import Firings, TokenRows, collect_firings
from monosemy.interpret.graph import Graph, Matcher, Pattern
from monosemy.interpret.inputs import InputCluster, cluster_inputs
from monosemy.interpret.logit_lens import TokenWeights, logit_lens, vocabulary_lens
from monosemy.interpret.map import cluster_features, map_features
from monosemy.interpret.maximise import Maximised, maximise
from monosemy.interpret.n2g import activate_in, explain_features
from monosemy.interpret.similar import (
    CoActivation,
    Neighbours,
    nearest_by_activation,
    nearest_by_direction,
    nearest_by_exemplars,
)
from monosemy.interpret.text import TextTable
from monosemy.interpret.view import Exemplar, FeatureView

__all__ = [
    "CoActivation",
    "Exemplar",
    "FeatureView",
    "Features",
    "FiringParents",
    "Firings",
    "Graph",
    "InputCluster",
    "Matcher",
    "Maximised",
    "Neighbours",
    "Parents",
    "Pattern",
    "TextTable",
    "TokenRows",
    "TokenWeights",
    "activate_in",
    "choose_features",
    "cluster_features",
    "cluster_inputs",
    "collect_features",
    "collect_firings",
    "explain_features",
    "logit_lens",
    "map_features",
    "maximise",
    "nearest_by_activation",
    "nearest_by_direction",
    "nearest_by_exemplars",
    "parents_by_activation",
    "parents_by_direction",
    "vocabulary_lens",
]
