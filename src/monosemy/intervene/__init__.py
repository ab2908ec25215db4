"""Interventions: turn features up and down and see what they cause."""

from monosemy.intervene.circuits import Circuit, carried, find_circuit, predicted
from monosemy.intervene.edges import Edge, edges
from monosemy.intervene.edits import FeatureEdit
from monosemy.intervene.nodes import ERROR, Effects, Node, NodeEffects, agreement
from monosemy.intervene.pair import SteeringPair
from monosemy.intervene.patching import Patching
from monosemy.intervene.positions import Firing, Positions
from monosemy.intervene.prompts import fitting
from monosemy.intervene.sides import PairSides, Sides, TextSides
from monosemy.intervene.steer import Measured, Steered, steer, steer_measured, touched_by
from monosemy.intervene.vectors import SteeringVector, VectorEdit
from monosemy.intervene.words import parse_change, parse_positions, split_edits

__all__ = [
    "ERROR",
    "Circuit",
    "Edge",
    "Effects",
    "FeatureEdit",
    "Firing",
    "Measured",
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
    "agreement",
    "carried",
    "edges",
    "find_circuit",
    "fitting",
    "parse_change",
    "parse_positions",
    "predicted",
    "split_edits",
    "steer",
    "steer_measured",
    "touched_by",
]
