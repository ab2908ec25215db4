"""Interventions: turn features up and down and see what they cause."""

from monosemy.intervene.circuits import Circuit, carried, find_circuit, predicted
from monosemy.intervene.edges import Edge, edges
from monosemy.intervene.edits import FeatureEdit
from monosemy.intervene.nodes import ERROR, Effects, Node, NodeEffects, agreement
from monosemy.intervene.pair import SteeringPair, Written
from monosemy.intervene.patching import Patching
from monosemy.intervene.positions import Firing, Positions
from monosemy.intervene.prompts import fitting
from monosemy.intervene.sides import PairSides, Sides, TextSides
from monosemy.intervene.steer import Steered, clamped, steer, touched_by, write_both
from monosemy.intervene.vectors import SteeringVector, VectorEdit
from monosemy.intervene.words import parse_change, parse_positions

__all__ = [
    "ERROR",
    "Circuit",
    "Edge",
    "Effects",
    "FeatureEdit",
    "Firing",
    "Node",
    "NodeEffects",
    "PairSides",
    "Patching",
    "Positions",
    "Sides",
    "Steered",
    "SteeringPair",
    "SteeringVector",
    "TextSides",
    "VectorEdit",
    "Written",
    "agreement",
    "carried",
    "clamped",
    "edges",
    "find_circuit",
    "fitting",
    "parse_change",
    "parse_positions",
    "predicted",
    "steer",
    "touched_by",
    "write_both",
]
