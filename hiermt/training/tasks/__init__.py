"""Tasks: what the targets of a training are, how its loss is computed and what it is scored by."""

from hiermt.training.tasks.classification import Binary, Classification
from hiermt.training.tasks.regression import Regression
from hiermt.training.tasks.several import Several
from hiermt.training.tasks.task import Task
from hiermt.training.tasks.two_headed import TwoHeaded

__all__ = ["Binary", "Classification", "Regression", "Several", "Task", "TwoHeaded"]
