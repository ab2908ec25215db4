"""Training: from text and a model to a dictionary."""

from monosemy.training.config import TrainConfig
from monosemy.training.member import Member, StepFigures, auxiliary_loss
from monosemy.training.run import Run, middle, train

__all__ = [
    "Member",
    "Run",
    "StepFigures",
    "TrainConfig",
    "auxiliary_loss",
    "middle",
    "train",
]
