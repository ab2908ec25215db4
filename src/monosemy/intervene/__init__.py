"""Interventions: turn features up and down and see what they cause."""

from monosemy.intervene.edits import FeatureEdit, Firing, Positions
from monosemy.intervene.pair import SteeringPair, Written
from monosemy.intervene.steer import clamped, compare, write_both

__all__ = [
    "FeatureEdit",
    "Firing",
    "Positions",
    "SteeringPair",
    "Written",
    "clamped",
    "compare",
    "write_both",
]
