"""Scores and results of a model on a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hiermt.data.feature_names import check_same, names_of
from hiermt.nn.inputs import placed, present_rows, run_model
from hiermt.training.loaders import check_loader
from hiermt.training.tasks import Task
from hiermt.training.tasks.absent import marked


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, loader: Iterable[Any], device: torch.device | str | None = None
) -> dict[str, float]:
    """Losses and scores of a model over all batches; the model is left in evaluation mode.

    Everything is fetched from the device once, at the end.

    Args:
        model (Module): moved to `device` if that is given.
        task (Task): one of :mod:`hiermt.tasks`.
        loader (iterable): batches with the targets of the task.
        device: where to compute. (default: ``None``, where the model is)

    Returns:
        The losses, averaged over the batches as in the training, and the scores of the task over all rows, such as
        ``accuracy``; NaN where no row counts.

    Raises:
        ValueError: the loader is empty, or its batches or the model do not fit the task.
        TypeError: the loader is not an iterable of batches.
    """
    check_loader("loader", loader)
    check_same("loader", names_of(loader), names_of(model))
    home = placed(model, device)
    model.eval()
    task.to(home)
    losses: Tensor | None = None
    counts: dict[str, Tensor] = {}
    steps = 0
    for batch in loader:
        batch = batch.to(home)
        output = run_model(model, batch, home)
        found = torch.stack([loss.to(torch.float64) for loss in task.losses(output, batch)])
        losses = found if losses is None else losses + found
        for name, count in task.count(output, batch).items():
            counts[name] = counts[name] + count if name in counts else count
        steps += 1
    if losses is None:
        raise ValueError("loader: has no batch")
    numbers: list[float] = torch.cat([losses / steps, *counts.values()]).tolist()
    result = dict(zip(task.parts, numbers, strict=False))
    at = len(task.parts)
    fetched: dict[str, list[float]] = {}
    for name, count in counts.items():
        fetched[name] = numbers[at : at + count.numel()]
        at += count.numel()
    return result | task.score(fetched)


@torch.no_grad()
def predict(model: nn.Module, task: Task, data: Any, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """Results of a model for a batch, or for all batches of a loader; the model is left in evaluation mode.

    Args:
        model (Module): moved to `device` if that is given.
        task (Task): one of :mod:`hiermt.tasks`.
        data: a batch with ``x`` and ``edge_index`` or ``graph``, or an iterable of batches; targets are not needed.
        device: where to compute. (default: ``None``, where the model is)

    Returns:
        The results of the task by name, such as ``predictions``; those of several batches are concatenated along the
        first dimension. A stock that is absent on the last day has -1 for integers and NaN for other numbers.

    Raises:
        ValueError: there is no batch, or the model does not fit the data or the task.
        TypeError: `data` is neither a batch nor an iterable of batches.
    """
    check_same("data", names_of(data), names_of(model))
    home = placed(model, device)
    model.eval()
    if not hasattr(data, "x"):
        if not hasattr(type(data), "__iter__"):
            raise TypeError(f"data: expected a batch with x, or an iterable of batches, got {type(data).__name__}")
        parts = [_decided(model, task, batch.to(home), home) for batch in data]
        if not parts:
            raise ValueError("data: has no batch")
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return _decided(model, task, data, home)


def _decided(model: nn.Module, task: Task, batch: Any, home: torch.device) -> dict[str, Tensor]:
    rows = present_rows(batch)
    decided = task.decide(run_model(model, batch, home))
    return decided if rows is None else marked(decided, rows.to(home))
