"""Explanations of features by a language model, and how well they predict where features fire."""

from monosemy.interpret.explain.ask import (
    Comparison,
    Estimate,
    Explanation,
    ask_explanations,
    choose_scorers,
    compare,
    estimate,
    questions_of,
)
from monosemy.interpret.explain.client import Client, Prices, Reply, Usage
from monosemy.interpret.explain.contexts import Contexts, Cutter
from monosemy.interpret.explain.prompts import explaining
from monosemy.interpret.explain.scorers import SCORERS, Score, Scorer

__all__ = [
    "SCORERS",
    "Client",
    "Comparison",
    "Contexts",
    "Cutter",
    "Estimate",
    "Explanation",
    "Prices",
    "Reply",
    "Score",
    "Scorer",
    "Usage",
    "ask_explanations",
    "choose_scorers",
    "compare",
    "estimate",
    "explaining",
    "questions_of",
]
