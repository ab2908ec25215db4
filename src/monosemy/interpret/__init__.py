"""What a feature means: where it fires, how strongly, and what it writes."""

from monosemy.interpret.choose import choose_features
from monosemy.interpret.features import Features, collect_features
from monosemy.interpret.firings import Firings, TokenRows, collect_firings
from monosemy.interpret.graph import Graph, Matcher, Pattern
from monosemy.interpret.logit_lens import TokenWeights, logit_lens, vocabulary_lens
from monosemy.interpret.n2g import activate_in, explain_features
from monosemy.interpret.text import TextTable
from monosemy.interpret.view import Exemplar, FeatureView

__all__ = [
    "Exemplar",
    "FeatureView",
    "Features",
    "Firings",
    "Graph",
    "Matcher",
    "Pattern",
    "TextTable",
    "TokenRows",
    "TokenWeights",
    "activate_in",
    "choose_features",
    "collect_features",
    "collect_firings",
    "explain_features",
    "logit_lens",
    "vocabulary_lens",
]
