"""A page of features of a half-trained dictionary, to watch them form."""

from __future__ import annotations

from collections.abc import Callable

from monosemy.coders import Dictionary
from monosemy.corpus import Corpus
from monosemy.interpret import build_features, choose_features
from monosemy.lm import LM
from monosemy.report.card import writable
from monosemy.report.page import ReportData, report_html

_TOKENS = 16_384
_FEATURES = 8


def feature_sampler(lm: LM, corpus: Corpus) -> Callable[[Dictionary, int], str]:
    """Return what makes a page of a dictionary's most telling features on held-out text."""

    def page(dictionary: Dictionary, tokens: int) -> str:
        features = build_features(dictionary, lm, corpus, tokens=_TOKENS)
        chosen = choose_features(features)[:_FEATURES]
        data = ReportData(
            title=f"features after {tokens:,} tokens",
            run={"dictionary": repr(dictionary), "held-out tokens": f"{_TOKENS:,}"},
            features=[features[feature] for feature in chosen],
        )
        return writable(report_html(data))

    return page
