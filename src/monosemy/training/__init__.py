"""Training: from text and a model to dictionaries."""

from monosemy.training.config import TrainConfig
from monosemy.training.fit import fit
from monosemy.training.grid import expand
from monosemy.training.member import Member, StepFigures
from monosemy.training.plan import context_for
from monosemy.training.run import (
    Run,
    describe_extension,
    make_plans,
    middle,
    open_lm,
    resume,
    seeds_beside,
    sweep,
    train,
)
from monosemy.training.session import Stopped
from monosemy.training.tracking import check_trackers

__all__ = [
    "Member",
    "Run",
    "StepFigures",
    "Stopped",
    "TrainConfig",
    "check_trackers",
    "context_for",
    "describe_extension",
    "expand",
    "fit",
    "make_plans",
    "middle",
    "open_lm",
    "resume",
    "seeds_beside",
    "sweep",
    "train",
]
