"""Training: one loop for every model; a resumed training is bitwise equal to an uninterrupted one."""

from hiermt.training.loop import train_hierarchical
from hiermt.training.optimizer import adam

__all__ = ["adam", "train_hierarchical"]
