"""Figures that say how good a dictionary is: pure functions and sums that stream exactly."""

from monosemy.metrics.activity import Activity
from monosemy.metrics.compute import compute_share, falling_fit
from monosemy.metrics.detection import detection
from monosemy.metrics.groups import Breakdown, GroupSums, bootstrap_weights, weighted_means
from monosemy.metrics.loss import LossEffect
from monosemy.metrics.reconstruction import FORMULAS, Reconstruction, interval
from monosemy.metrics.recovery import mean_max_cosine, recovery_f1
from monosemy.metrics.sparsity import effect_sparsity

__all__ = [
    "FORMULAS",
    "Activity",
    "Breakdown",
    "GroupSums",
    "LossEffect",
    "Reconstruction",
    "bootstrap_weights",
    "compute_share",
    "detection",
    "effect_sparsity",
    "falling_fit",
    "interval",
    "mean_max_cosine",
    "recovery_f1",
    "weighted_means",
]
