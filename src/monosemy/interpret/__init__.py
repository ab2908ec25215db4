"""What a feature means: where it fires, how strongly, and what it writes."""

from monosemy.interpret.choose import choose_features
from monosemy.interpret.features import Features, collect_features
from monosemy.interpret.logit_lens import logit_lens
from monosemy.interpret.text import TextTable
from monosemy.interpret.view import Exemplar, FeatureView

__all__ = [
    "Exemplar",
    "FeatureView",
    "Features",
    "TextTable",
    "choose_features",
    "collect_features",
    "logit_lens",
]
