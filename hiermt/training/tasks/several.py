"""Several tasks at once, one for each head of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hiermt._arguments import check_number
from hiermt.training.tasks.task import TOTAL, Task


class Several(Task):
    """One task a head; the loss is the weighted sum of theirs.

    Args:
        tasks (mapping): name of each head, and its task. A task that was not given a `target` reads the attribute with
            the name of its head.
        weights (mapping, optional): weight of the loss of each head. (default: 1 each)

    Shapes:
        - **output:** a mapping from the name of each head to what its task takes
        - **decide:** ``{"<head>_predictions", ...}``

    Raises:
        ValueError: there is no task, or a weight without a task.
        TypeError: a task or a weight is of another type.
    """

    def __init__(self, tasks: Mapping[str, Task], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        if not isinstance(tasks, Mapping) or not tasks:
            raise ValueError(f"tasks: expected a mapping from the name of each head to its task, got {tasks!r}")
        for name, task in tasks.items():
            if not isinstance(task, Task):
                raise TypeError(f"tasks[{name!r}]: expected a Task, got {type(task).__name__}")
            if len(task.parts) > 1:
                raise TypeError(f"tasks[{name!r}]: expected a task of one loss, got a {type(task).__name__}")
            if task.needs == ("y",):
                task.target, task.needs = name, (name,)
        unknown = sorted(set(weights or {}) - set(tasks))
        if unknown:
            raise ValueError(f"weights: there is no task {unknown[0]!r}; the tasks are {', '.join(tasks)}")
        self.tasks = nn.ModuleDict(tasks)
        self.weights = {name: check_number(f"weights[{name!r}]", (weights or {}).get(name, 1.0)) for name in tasks}
        self.parts = (TOTAL, *(f"{name}_loss" for name in tasks))
        self.needs = tuple(dict.fromkeys(need for task in tasks.values() for need in task.needs))

    @property
    def capturable(self) -> bool:
        return all(task.capturable for task in self._each().values())

    def losses(self, output: Any, batch: Any) -> tuple[Tensor, ...]:
        heads = self._heads(output)
        parts = {name: task.losses(heads[name], batch)[0] for name, task in self._each().items()}
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return total, *parts.values()

    def decide(self, output: Any) -> dict[str, Tensor]:
        heads = self._heads(output)
        return {
            f"{name}_{key}": value
            for name, task in self._each().items()
            for key, value in task.decide(heads[name]).items()
        }

    def count(self, output: Any, batch: Any) -> dict[str, Tensor]:
        heads = self._heads(output)
        return {name: task.count(heads[name], batch)[""] for name, task in self._each().items()}

    def score(self, counts: dict[str, list[float]]) -> dict[str, float]:
        return {
            f"{name}_{key}": value
            for name, task in self._each().items()
            for key, value in task.score({"": counts[name]}).items()
        }

    def _each(self) -> dict[str, Task]:
        return dict(self.tasks.items())  # type: ignore[arg-type]

    def _heads(self, output: Any) -> Mapping[str, Any]:
        if not isinstance(output, Mapping):
            raise self.expects(f"a mapping with the outputs of {', '.join(self.tasks)}", f"a {type(output).__name__}")
        missing = [name for name in self.tasks if name not in output]
        if missing:
            raise self.expects(f"an output for the head {missing[0]!r}", f"outputs for {', '.join(output) or 'none'}")
        return output
