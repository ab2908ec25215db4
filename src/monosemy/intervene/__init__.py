"""Interventions: turn features up and down and see what they cause."""

from monosemy.intervene.edits import FeatureEdit, Firing, Positions
from monosemy.intervene.nodes import ERROR, Effects, Node, NodeEffects, agreement
from monosemy.intervene.pair import SteeringPair, Written
from monosemy.intervene.patching import Patching
from monosemy.intervene.prompts import fitting
from monosemy.intervene.steer import clamped, compare, write_both

__all__ = [
    "ERROR",
    "Effects",
    "FeatureEdit",
    "Firing",
    "Node",
    "NodeEffects",
    "Patching",
    "Positions",
    "SteeringPair",
    "Written",
    "agreement",
    "clamped",
    "compare",
    "fitting",
    "write_both",
]
