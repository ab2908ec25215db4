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
from monosemy.interpret.describe import (
    CONCEPTS,
    COVERAGE,
    KINDS_OF_TEXT,
    LENS,
    MAP,
    PATTERNS,
    SIMILAR,
    describe,
    read_clusters,
    read_coverage,
    write_concepts,
    write_kinds,
    write_map,
    write_patterns,
)
from monosemy.interpret.families import (
    FiringParents,
    Parents,
    parents_by_activation,
    parents_by_direction,
)
from monosemy.interpret.features import Features, build_features, join_features
from monosemy.interpret.firings import Firings, TokenRows, collect_firings
from monosemy.interpret.graph import Graph, Matcher, Pattern
from monosemy.interpret.inputs import InputCluster, cluster_inputs
from monosemy.interpret.logit_lens import TokenWeights, direct_logits, logit_lens, vocabulary_lens
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

__all__ = [
    "CONCEPTS",
    "COVERAGE",
    "KINDS_OF_TEXT",
    "LENS",
    "MAP",
    "NO_CONCEPT",
    "PATTERNS",
    "SIMILAR",
    "CoActivation",
    "ConceptTable",
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
    "PlaceLabels",
    "TokenRows",
    "TokenWeights",
    "activate_in",
    "build_features",
    "choose_features",
    "cluster_features",
    "cluster_inputs",
    "collect_firings",
    "describe",
    "direct_logits",
    "explain_features",
    "join_features",
    "label_index",
    "label_places",
    "logit_lens",
    "map_features",
    "maximise",
    "nearest_by_activation",
    "nearest_by_direction",
    "nearest_by_exemplars",
    "parents_by_activation",
    "parents_by_direction",
    "read_clusters",
    "read_coverage",
    "score_features",
    "vocabulary_lens",
    "write_concepts",
    "write_kinds",
    "write_map",
    "write_patterns",
]
