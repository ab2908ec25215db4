"""Batches of activations: live from a model or from disk, shuffled, and their statistics."""

from monosemy.activations.arrays import Rows, store_arrays
from monosemy.activations.harvest import Harvest, check_text, repair
from monosemy.activations.live import (
    Activations,
    LiveActivations,
    can_autocast,
    counted_activations,
    counted_of,
)
from monosemy.activations.recipe import Recipe
from monosemy.activations.shuffle import ShufflePool
from monosemy.activations.statistics import Statistics
from monosemy.activations.store import (
    Damage,
    Shard,
    Store,
    StoreWriter,
    require_precision,
    verify,
)
from monosemy.activations.synthetic import SyntheticFeatures

__all__ = [
    "Activations",
    "Damage",
    "Harvest",
    "LiveActivations",
    "Recipe",
    "Rows",
    "Shard",
    "ShufflePool",
    "Statistics",
    "Store",
    "StoreWriter",
    "SyntheticFeatures",
    "can_autocast",
    "check_text",
    "counted_activations",
    "counted_of",
    "repair",
    "require_precision",
    "store_arrays",
    "verify",
]
