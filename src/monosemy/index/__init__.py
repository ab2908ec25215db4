"""The feature index: which features fire where, and how much."""

from monosemy.index.build import TOKENS, build_index, is_made, join_index, look
from monosemy.index.index import Coactivation, Index, Match, Shared
from monosemy.index.names import NO_CONCEPT, Name, add_name, merge_names, read_names
from monosemy.index.prompt import PromptFeature, PromptFeatures
from monosemy.index.search import Found
from monosemy.index.text import TokenTable
from monosemy.index.view import Exemplar, FeatureView

__all__ = [
    "NO_CONCEPT",
    "TOKENS",
    "Coactivation",
    "Exemplar",
    "FeatureView",
    "Found",
    "Index",
    "Match",
    "Name",
    "PromptFeature",
    "PromptFeatures",
    "Shared",
    "TokenTable",
    "add_name",
    "build_index",
    "is_made",
    "join_index",
    "look",
    "merge_names",
    "read_names",
]
