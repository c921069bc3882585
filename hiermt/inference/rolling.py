"""Decisions for every window of a long history.

The windows are passed as :class:`hiermt.Windows`, so that the first layer computes each day once for all windows that
contain it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from hiermt._arguments import check_integer
from hiermt.graph import DynamicGraph, Graph
from hiermt.inference.decider import Decide, Decisions, check_finite, check_names, check_series, decider
from hiermt.presence import check_present
from hiermt.training.tasks import Task
from hiermt.training.tasks.absent import marked
from hiermt.windows import Windows

__all__ = ["Decisions", "predict_rolling"]

# Default number of nodes in a chunk: enough for all cores, and small enough for their caches.
_CHUNK_NODES = 3200


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
    present: Tensor | None = None,
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
    present: Tensor | None = None,
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
    present: Tensor | None = None,
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
        present (Tensor, optional): which stock is there on which day, such as ``dataset.present``; elsewhere the series
            may be NaN. A stock that is absent on the last day of a window has -1 for integers and NaN for other numbers
            in the result. (default: ``None``, all of them)

    Shapes:
        - **series:** ``[S, D, F]``; **present:** ``[S, D]`` bool
        - **returns:** with a task its result by name, ``[W, S, *]`` each, else :class:`Decisions`, of
          ``W = (D - window) // stride + 1`` windows

    Raises:
        ValueError: a size or device does not fit, the features are not those of the model, there are fewer days than
            `window`, `threshold` is not a probability, or the series holds NaN or infinity where a stock is present.
        TypeError: the model, the graph, the dtype or an integer is of another type.
        IndexError: a window ends before the first graph of a :class:`DynamicGraph`.
    """
    decide = decider(model, graph, threshold, task, (Graph, DynamicGraph))
    check_series("series", model, series, graph, "[stocks, days, {}]")
    check_names(model, feature_names)
    stocks, days, _ = series.shape
    for name, value in (("window", window), ("stride", stride), ("chunk", 1 if chunk is None else chunk)):
        check_integer(name, value, 1)
    if days < window:
        raise ValueError(f"series: {days} days are fewer than the {window} of a window")
    if present is not None:
        check_present(present, series.shape[:2], series)
    check_finite(series, present=present)
    model.eval()
    starts = range(0, days - window + 1, stride)
    chunk = max(1, _CHUNK_NODES // max(stocks, 1)) if chunk is None else chunk
    result: dict[str, Tensor] = {}
    for part, decided in _bar(_chunks(decide, series, graph, window, starts, chunk, present), len(starts), progress):
        for name, piece in decided.items():
            if name not in result:
                result[name] = piece.new_empty(len(starts), *piece.shape[1:])
            result[name][part.start : part.stop] = piece
    return result if task is not None else Decisions(**result)


def _chunks(
    decide: Decide,
    series: Tensor,
    graph: Graph | DynamicGraph,
    window: int,
    starts: range,
    chunk: int,
    present: Tensor | None,
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
            here = None if present is None else present[:, first:stop]
            begins = days[part.start : part.stop] - first
            decided = decide(Windows(series[:, first:stop], begins, window, here), current, None)
            if here is not None:
                decided = marked(decided, here.index_select(1, begins + (window - 1)).t())
            yield part, decided


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
