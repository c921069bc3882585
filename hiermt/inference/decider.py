"""Decisions of a model or of its task, and the checks of what they are made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiermt._arguments import check_number
from hiermt.data.feature_names import as_names, check_same
from hiermt.graph import DynamicGraph, Graph
from hiermt.inference.hierarchical import joint_probabilities
from hiermt.training.tasks import Task
from hiermt.windows import Windows

# From features, a graph, and for features that are not Windows which stock is present on which day.
Decide = Callable[[Tensor | Windows, Graph, Tensor | None], dict[str, Tensor]]


class Decisions(NamedTuple):
    """Decisions of a model for ``W`` windows of ``S`` stocks.

    A stock that is absent on the last day of a window has the prediction -1, and NaN for all other numbers.

    Shapes:
        - **predictions:** ``[W, S]`` int64 (0 Down, 1 Neutral, 2 Up); **confidences:** ``[W, S]``
        - **probabilities:** ``[W, S, 4]`` (noise, signal, down, up)
        - **classes:** ``[W, S, 3]`` (Down, Neutral, Up); see :func:`hiermt.joint_probabilities`
    """

    predictions: Tensor
    confidences: Tensor
    probabilities: Tensor

    @property
    def classes(self) -> Tensor:
        """Probability of each class, computed from those of the heads."""
        return joint_probabilities(self.probabilities)


def decider(model: Any, graph: object, threshold: float, task: Task | None, kinds: tuple[type, ...]) -> Decide:
    """The call that decides, by the model's own method or by a task; checks model, graph and threshold."""
    if task is not None and not isinstance(task, Task):
        raise TypeError(f"task: expected one of hiermt.tasks, such as Classification(3), got {type(task).__name__}")
    if task is not None and threshold != 0.5:
        raise ValueError(f"threshold: {threshold} was given beside a task, which has its own if it needs one")
    _check_model(model, graph, threshold, kinds, "layout" if task is not None else "decide")
    own = None if task is None else task.to(next(model.parameters()).device)

    def decide(x: Tensor | Windows, graph: Graph, present: Tensor | None) -> dict[str, Tensor]:
        # A wrapper of the user's own may take no mask.
        options = {} if present is None else {"present": present}
        if own is not None:
            return own.decide(model(x, graph, **options))
        decided = model.decide(x, graph, threshold=threshold, **options)
        return dict(zip(Decisions._fields, decided, strict=True))

    return decide


def _check_model(model: object, graph: object, threshold: float, kinds: tuple[type, ...], has: str) -> None:
    if not isinstance(model, nn.Module) or not hasattr(model, has):
        expected = "hiermt.TGCN_HierarchicalMT" if has == "decide" else "model of hiermt"
        raise TypeError(
            f"model: expected a {expected}, got {type(model).__name__}, which has no {has}"
            + ("; give the task of another model, task=hiermt.tasks.Classification(3) or the like" * (has == "decide"))
        )
    if not isinstance(graph, kinds):
        raise TypeError(
            f"graph: expected a hiermt.{' or '.join(kind.__name__ for kind in kinds)}, got {type(graph).__name__}; use "
            "hiermt.Graph(edge_index, edge_weight, num_nodes)"
        )
    device = next(model.parameters()).device
    if graph.device != device:  # type: ignore[attr-defined]
        raise ValueError(f"the model is on {device}, the graph on {graph.device}; move one")  # type: ignore[attr-defined]
    check_number("threshold", threshold, 0.0, 1.0)


def check_names(model: Any, names: Sequence[str] | None) -> None:
    """Raises ValueError if the features of a series are not those of the model."""
    check_same("series", as_names(names, model.config["in_channels"]), model.feature_names)


def check_series(name: str, model: Any, series: Tensor, graph: Graph | DynamicGraph, shape: str) -> None:
    """Raises unless the series fits the model and the graph; `shape` has a placeholder for the number of features."""
    channels, weight = model.config["in_channels"], next(model.parameters())
    if not isinstance(series, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(series).__name__}")
    if series.dim() != shape.count(",") + 1 or series.size(-1) != channels:
        raise ValueError(f"{name}: expected {shape.format(channels)}, got {list(series.shape)}")
    if series.size(0) != graph.num_nodes:
        raise ValueError(f"{name}: has {series.size(0)} stocks, the graph {graph.num_nodes} nodes")
    if series.device != weight.device:
        raise ValueError(f"{name} is on {series.device}, the model on {weight.device}; move one with .to(...)")
    # Under autocast, the model converts both.
    if series.dtype != weight.dtype and not torch.is_autocast_enabled(series.device.type):
        raise TypeError(f"{name} is {series.dtype}, the model {weight.dtype}; convert one of them")


def check_finite(series: Tensor, name: str = "series", present: Tensor | None = None) -> None:
    """Raises ValueError if a stock that is present has a feature that is NaN or infinite."""
    # The sum is one cheap pass; the elements are checked only if it is not finite.
    if math.isfinite(float(series.sum())):
        return
    finite = torch.isfinite(series)
    if present is not None:
        finite = finite | ~present.unsqueeze(-1)
    if bool(finite.all()):
        return
    stock, day, feature = (~finite).nonzero()[0].tolist()
    raise ValueError(
        f"{name}: stock {stock}, day {day}, feature {feature} is NaN or infinite; repair the series"
        + (", or give present= where stocks are absent" if present is None else "")
    )
