"""Evaluation on held-out text, beside baselines, with a verdict in words."""

from monosemy.evaluate.evaluate import evaluate, open_dictionary_corpus
from monosemy.evaluate.evaluation import Evaluation

__all__ = ["Evaluation", "evaluate", "open_dictionary_corpus"]
