"""Evaluation on held-out text, beside baselines, with a verdict in words."""

from monosemy.evaluation.evaluate import evaluate, open_dictionary_corpus
from monosemy.evaluation.result import Evaluation
from monosemy.evaluation.spread import measure_spread
from monosemy.evaluation.sweep import SweepRow, compare_on_held_out

__all__ = [
    "Evaluation",
    "SweepRow",
    "compare_on_held_out",
    "evaluate",
    "measure_spread",
    "open_dictionary_corpus",
]
