"""Interventions: turn features up and down and see what they cause."""

from monosemy.intervene.pair import SteeringPair
from monosemy.intervene.steer import compare

__all__ = ["SteeringPair", "compare"]
