"""Training: one loop for every model and task; a resumed training is bitwise equal to an uninterrupted one."""

from hiermt.training import tasks
from hiermt.training.evaluate import evaluate, predict
from hiermt.training.hierarchical import train_hierarchical
from hiermt.training.history import History
from hiermt.training.loop import train
from hiermt.training.optimizer import adam

__all__ = ["History", "adam", "evaluate", "predict", "tasks", "train", "train_hierarchical"]
