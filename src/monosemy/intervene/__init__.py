"""Interventions: turn features up and down and see what they cause."""

from monosemy.intervene.edits import FeatureEdit, Firing, Positions
from monosemy.intervene.pair import SteeringPair, Written
from monosemy.intervene.steer import Steered, clamped, steer, touched_by, write_both
from monosemy.intervene.words import parse_change, parse_positions

__all__ = [
    "FeatureEdit",
    "Firing",
    "Positions",
    "Steered",
    "SteeringPair",
    "Written",
    "clamped",
    "parse_change",
    "parse_positions",
    "steer",
    "touched_by",
    "write_both",
]
