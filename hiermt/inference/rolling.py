"""Decisions for every window of a long history, and for each new day.

Both call ``model.decide``, or the model and its task. The windows of a history are passed as
:class:`hiermt.Windows`, so
that the first layer computes each day once for all windows that contain it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from hiermt._arguments import check_integer, check_number
from hiermt.data.feature_names import as_names, check_same
from hiermt.graph import DynamicGraph, Graph
from hiermt.inference.hierarchical import joint_probabilities
from hiermt.training.tasks import Task
from hiermt.windows import Windows

# Default number of nodes in a chunk: enough for all cores, and small enough for their caches.
_CHUNK_NODES = 3200


class Decisions(NamedTuple):
    """Decisions of a model for ``W`` windows of ``S`` stocks.

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


@overload
def predict_rolling(
    model: nn.Module,
    series: Tensor,
    graph: Graph | DynamicGraph,
    window: int = 25,
    stride: int = 1,
    *,
    threshold: float = 0.5,
    chunk: int | None = None,
    progress: bool = False,
    feature_names: Sequence[str] | None = None,
    task: None = None,
) -> Decisions: ...


@overload
def predict_rolling(
    model: nn.Module,
    series: Tensor,
    graph: Graph | DynamicGraph,
    window: int = 25,
    stride: int = 1,
    *,
    threshold: float = 0.5,
    chunk: int | None = None,
    progress: bool = False,
    feature_names: Sequence[str] | None = None,
    task: Task,
) -> dict[str, Tensor]: ...


@torch.no_grad()
def predict_rolling(
    model: nn.Module,
    series: Tensor,
    graph: Graph | DynamicGraph,
    window: int = 25,
    stride: int = 1,
    *,
    threshold: float = 0.5,
    chunk: int | None = None,
    progress: bool = False,
    feature_names: Sequence[str] | None = None,
    task: Task | None = None,
) -> Decisions | dict[str, Tensor]:
    r"""Decides for every stock and window of a history; equals ``model.decide`` on each window.

    Window ``w`` holds days ``w * stride`` to ``w * stride + window - 1``. Memory beyond the series and the result is
    that of one chunk, for a history of any length. Dtypes and autocast are those of ``model.decide``.

    Args:
        model (TGCN_HierarchicalMT): or a wrapper with its method `decide`, or with `task` any model of the package;
            left in evaluation mode.
        series (Tensor): features of each stock and day, scaled as in training; the day precedes the feature in every
            layout of the model.
        graph (Graph or DynamicGraph): of the stocks; a window uses the graph of its last day.
        window (int): ``T``, days in a window. (default: ``25``)
        stride (int): days from one window to the next. (default: ``1``)
        threshold (float): a stock has a signal iff ``P(signal)`` is above it. (default: ``0.5``)
        chunk (int, optional): windows computed together. (default: about 3,200 nodes)
        progress (bool): show a bar, if ``tqdm`` is installed. (default: ``False``)
        feature_names (sequence of str, optional): of the series, such as ``dataset.feature_names``; must equal those of
            the model, if it has any. (default: ``None``, not compared)
        task (Task, optional): one of :mod:`hiermt.tasks`, whose result is returned in place of the two-headed decision;
            it excludes `threshold`, which a task holds itself. (default: ``None``)

    Shapes:
        - **series:** ``[S, D, F]``
        - **returns:** with a task its result by name, ``[W, S, *]`` each, else :class:`Decisions`, of
          ``W = (D - window) // stride + 1`` windows

    Raises:
        ValueError: a size or device does not fit, the features are not those of the model, there are fewer days than
            `window`, `threshold` is not a probability, or the series holds NaN or infinity.
        TypeError: the model, the graph, the dtype or an integer is of another type.
        IndexError: a window ends before the first graph of a :class:`DynamicGraph`.
    """
    decide = _decider(model, graph, threshold, task, (Graph, DynamicGraph))
    _check_series("series", model, series, graph, "[stocks, days, {}]")
    _check_names(model, feature_names)
    stocks, days, _ = series.shape
    for name, value in (("window", window), ("stride", stride), ("chunk", 1 if chunk is None else chunk)):
        check_integer(name, value, 1)
    if days < window:
        raise ValueError(f"series: {days} days are fewer than the {window} of a window")
    _check_finite(series)
    model.eval()
    starts = range(0, days - window + 1, stride)
    chunk = max(1, _CHUNK_NODES // max(stocks, 1)) if chunk is None else chunk
    result: dict[str, Tensor] = {}
    for part, decided in _bar(_chunks(decide, series, graph, window, starts, chunk), len(starts), progress):
        for name, piece in decided.items():
            if name not in result:
                result[name] = piece.new_empty(len(starts), *piece.shape[1:])
            result[name][part.start : part.stop] = piece
    return result if task is not None else Decisions(**result)


class LivePredictor:
    r"""Decides after each new day.

    The features of the last ``window`` days are kept. Each decision is that of ``model.decide`` on them, with its
    current weights, dtypes and autocast.

    Args:
        model (TGCN_HierarchicalMT): or a wrapper with its method `decide`, or with `task` any model of the package;
            left in evaluation mode.
        graph (Graph): of the stocks; weights changed in place apply from the next day on.
        window (int): ``T``, days in a window. (default: ``25``)
        threshold (float): a stock has a signal iff ``P(signal)`` is above it. (default: ``0.5``)
        feature_names (sequence of str, optional): of the days, as for :func:`predict_rolling`. (default: ``None``)
        task (Task, optional): as for :func:`predict_rolling`; its result takes the place of :class:`Decisions`.
            (default: ``None``)

    Attributes:
        days (int): number of days so far; of each call, at most the last `window` days are counted.

    Raises:
        ValueError: `window` is below 1, `threshold` is not a probability, the features are not those of the model, or
            model and graph are on two devices.
        TypeError: the model, the graph or `window` is of another type.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        window: int = 25,
        *,
        threshold: float = 0.5,
        feature_names: Sequence[str] | None = None,
        task: Task | None = None,
    ) -> None:
        self._decide = _decider(model, graph, threshold, task, (Graph,))
        _check_names(model, feature_names)
        check_integer("window", window, 1)
        self.model: Any = model.eval()
        self.window, self.threshold, self.task = window, threshold, task
        self.graph = graph
        self.days = 0
        self._kept: Tensor | None = None  # [S, days, F], of the last window at most

    def extend(self, series: Tensor) -> Any:
        """Appends several days, ``[S, D, F]``, all or none, and decides after the last; see :meth:`append`."""
        _check_series("series", self.model, series, self.graph, "[stocks, days, {}]")
        return self._append("series", series) if series.size(1) else None

    def append(self, day: Tensor) -> Any:
        """Appends the features of a new day and decides for the day after.

        Args:
            day (Tensor): features of each stock, scaled as in training.

        Shapes:
            - **day:** ``[S, F]``
            - **returns:** :class:`Decisions` with ``W = 1``, or ``None`` until there are `window` days

        Raises:
            ValueError: a size or device does not fit, or the day holds NaN or infinity; no day is appended.
            TypeError: the dtype is not that of the model or of the earlier days; no day is appended.
        """
        _check_series("day", self.model, day, self.graph, "[stocks, {}]")
        return self._append("day", day.unsqueeze(1))

    @torch.no_grad()
    def _append(self, name: str, series: Tensor) -> Any:
        _check_finite(series, name)
        before, new = self._kept, series[:, -self.window :]
        if before is None:
            kept = new.clone()
        elif before.dtype != series.dtype or before.device != series.device:
            raise TypeError(
                f"{name} is {series.dtype} on {series.device}, the earlier days are {before.dtype} on {before.device}; "
                "convert it, or make a new LivePredictor and give it the last days"
            )
        else:
            kept = torch.cat([before, new], dim=1)[:, -self.window :]
        decided: Any = None
        if kept.size(1) == self.window:
            # As a plain x, a single window needs no check of its start.
            x = kept if self.model.layout == "NTF" else kept.transpose(1, 2)
            found = {name: column.unsqueeze(0) for name, column in self._decide(x, self.graph).items()}
            decided = found if self.task is not None else Decisions(**found)
        # Last, so that a day that the model refuses is not appended.
        self._kept, self.days = kept, self.days + new.size(1)
        return decided


def _decider(
    model: Any, graph: object, threshold: float, task: Task | None, kinds: tuple[type, ...]
) -> Callable[[Tensor | Windows, Graph], dict[str, Tensor]]:
    """The call that decides, by the model's own method or by a task; checks model, graph and threshold."""
    if task is not None and not isinstance(task, Task):
        raise TypeError(f"task: expected one of hiermt.tasks, such as Classification(3), got {type(task).__name__}")
    if task is not None and threshold != 0.5:
        raise ValueError(f"threshold: {threshold} was given beside a task, which has its own if it needs one")
    _check_model(model, graph, threshold, kinds, "layout" if task is not None else "decide")
    if task is not None:
        own = task.to(next(model.parameters()).device)
        return lambda x, graph: own.decide(model(x, graph))
    return lambda x, graph: dict(zip(Decisions._fields, model.decide(x, graph, threshold=threshold), strict=True))


def _chunks(
    decide: Callable[[Tensor | Windows, Graph], dict[str, Tensor]],
    series: Tensor,
    graph: Graph | DynamicGraph,
    window: int,
    starts: range,
    chunk: int,
) -> Iterator[tuple[range, dict[str, Tensor]]]:
    """Ranges of positions in `starts`, and what is decided for them."""
    runs: Iterable[tuple[Graph, range]]
    if isinstance(graph, DynamicGraph):
        runs = graph.runs([start + window - 1 for start in starts])
    else:
        runs = [(graph, range(len(starts)))]
    days = torch.arange(0, starts.stop, starts.step, dtype=torch.int64, device=series.device)
    for current, positions in runs:
        for begin in range(positions.start, positions.stop, chunk):
            part = range(begin, min(begin + chunk, positions.stop))
            first, stop = starts[part.start], starts[part.stop - 1] + window
            windows = Windows(series[:, first:stop], days[part.start : part.stop] - first, window)
            yield part, decide(windows, current)


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


def _check_names(model: Any, names: Sequence[str] | None) -> None:
    check_same("series", as_names(names, model.config["in_channels"]), model.feature_names)


def _check_series(name: str, model: Any, series: Tensor, graph: Graph | DynamicGraph, shape: str) -> None:
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


def _check_finite(series: Tensor, name: str = "series") -> None:
    # The sum is one cheap pass; the elements are checked only if it is not finite.
    if math.isfinite(float(series.sum())):
        return
    finite = torch.isfinite(series)
    if bool(finite.all()):
        return
    stock, day, feature = (~finite).nonzero()[0].tolist()
    raise ValueError(f"{name}: stock {stock}, day {day}, feature {feature} is NaN or infinite; repair the series")


def _bar(
    parts: Iterable[tuple[range, dict[str, Tensor]]], total: int, enabled: bool
) -> Iterator[tuple[range, dict[str, Tensor]]]:
    bar: Any = None
    if enabled:
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            bar = tqdm(total=total, desc="deciding", unit="window", leave=False, disable=None)
    for part, decided in parts:
        yield part, decided
        if bar is not None:
            bar.update(len(part))
    if bar is not None:
        bar.close()
