"""Batches of activations: taken live from a model, shuffled, and their statistics."""

from monosemy.activations.live import Activations, LiveActivations, counted_activations
from monosemy.activations.shuffle import ShufflePool
from monosemy.activations.statistics import Statistics
from monosemy.activations.synthetic import SyntheticFeatures

__all__ = [
    "Activations",
    "LiveActivations",
    "ShufflePool",
    "Statistics",
    "SyntheticFeatures",
    "counted_activations",
]
