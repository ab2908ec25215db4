"""Interventions: turn features up and down and see what they cause."""

from monosemy.intervene.edits import FeatureEdit
from monosemy.intervene.pair import SteeringPair, Written
from monosemy.intervene.positions import Firing, Positions
from monosemy.intervene.sides import PairSides, Sides, TextSides
from monosemy.intervene.steer import clamped, compare, write_both
from monosemy.intervene.vectors import SteeringVector, VectorEdit

__all__ = [
    "FeatureEdit",
    "Firing",
    "PairSides",
    "Positions",
    "Sides",
    "SteeringPair",
    "SteeringVector",
    "TextSides",
    "VectorEdit",
    "Written",
    "clamped",
    "compare",
    "write_both",
]
