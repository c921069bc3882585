"""Decisions for every window of a long history, and for each new day as it comes.

Windows of consecutive days overlap. What the first layer computes before its recurrence depends on the day alone: the
convolution stack, and what the gates take from the features and from the convolution. It is computed once a day here,
not once a window, and the recurrence reads it in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermt import _backend, functional
from hiermt._arguments import check_integer
from hiermt._feature_names import as_names, check_same
from hiermt.dynamic import DynamicGraph
from hiermt.graph import Graph
from hiermt.nn import TGCN_HierarchicalMT, TGCNCell

# Nodes of one chunk, unless the caller says how many windows: enough to feed every core, little enough for its cache.
_CHUNK_NODES = 3200


class Decisions(NamedTuple):
    """What a model decides for ``W`` windows of ``S`` stocks.

    Shapes:
        - **predictions:** ``[W, S]`` int64 (0 Down, 1 Neutral, 2 Up); **confidences:** ``[W, S]``
        - **probabilities:** ``[W, S, 4]`` (noise, signal, down, up)
    """

    predictions: Tensor
    confidences: Tensor
    probabilities: Tensor


@torch.no_grad()
def predict_rolling(
    model: TGCN_HierarchicalMT,
    series: Tensor,
    graph: Graph | DynamicGraph,
    window: int = 25,
    stride: int = 1,
    *,
    threshold: float = 0.5,
    chunk: int | None = None,
    progress: bool = False,
    feature_names: Sequence[str] | None = None,
) -> Decisions:
    r"""Decides for every stock and every window of a history, as the model would window by window.

    Window ``w`` holds days ``w * stride`` to ``w * stride + window - 1``. Memory beyond the series and the result is
    that of one chunk, however long the history is.

    Args:
        model (TGCN_HierarchicalMT): put into evaluation mode.
        series (Tensor): features of each stock and day, scaled as in the training.
        graph (Graph or DynamicGraph): of the stocks; one that changes is taken as of the last day of a window.
        window (int): ``T``, days in a window. (default: ``25``)
        stride (int): days from one window to the next. (default: ``1``)
        threshold (float): a stock has a signal iff ``P(signal)`` is above it. (default: ``0.5``)
        chunk (int, optional): windows computed together. (default: as many as have about 3,200 nodes)
        progress (bool): show a bar, if ``tqdm`` is installed. (default: ``False``)
        feature_names (sequence of str, optional): of the series, such as ``dataset.feature_names``; they have to be
            those of the model, if it has any. (default: ``None``, not compared)

    Shapes:
        - **series:** ``[S, D, F]``
        - **returns:** :class:`Decisions` of ``W = (D - window) // stride + 1`` windows

    Raises:
        ValueError: a size or device does not fit, the features are not those of the model, there are fewer days than
            `window`, `threshold` is no probability, or the series holds NaN or infinity.
        TypeError: the model, the graph, the dtype or an integer is of another type.
        IndexError: a window ends before the first graph of a :class:`DynamicGraph`.
    """
    _check_model(model, graph, threshold, (Graph, DynamicGraph))
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
    shape = (len(starts), stocks)
    predictions = torch.empty(shape, dtype=torch.int64, device=series.device)
    result = Decisions(predictions, series.new_empty(shape), series.new_empty(*shape, 4))
    for part, decided in _bar(_chunks(model, series, graph, window, starts, chunk, threshold), len(starts), progress):
        for whole, piece in zip(result, decided, strict=True):
            whole[part.start : part.stop] = piece
    return result


class LivePredictor:
    r"""Takes one day after the other and decides on each, in the time of one window.

    The last ``window`` days are kept as the first layer reads them, so a new day costs one convolution of that day.

    Args:
        model (TGCN_HierarchicalMT): put into evaluation mode. Its weights are taken as they are; make a new predictor
            when they change.
        graph (Graph): of the stocks; make a new predictor when it changes, and give it the last days.
        window (int): ``T``, days in a window. (default: ``25``)
        threshold (float): a stock has a signal iff ``P(signal)`` is above it. (default: ``0.5``)
        feature_names (sequence of str, optional): of the days, as for :func:`predict_rolling`. (default: ``None``)

    Raises:
        ValueError: `window` is below 1, `threshold` is no probability, the features are not those of the model, or
            model and graph are on two devices.
        TypeError: the model, the graph or `window` is of another type.
    """

    def __init__(
        self,
        model: TGCN_HierarchicalMT,
        graph: Graph,
        window: int = 25,
        *,
        threshold: float = 0.5,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        _check_model(model, graph, threshold, (Graph,))
        _check_names(model, feature_names)
        check_integer("window", window, 1)
        self.model, self.window, self.threshold = model.eval(), window, threshold
        self.graph = graph
        self._layer = _FirstLayer(model, graph)
        self.days = 0
        # Every day is written twice, a window apart, so that the last window always lies in one piece.
        self._ring: Tensor | None = None

    def extend(self, series: Tensor) -> Decisions | None:
        """Takes several days, ``[S, D, F]``, and decides on the last; see :meth:`append`. All are taken, or none."""
        _check_series("series", self.model, series, self.graph, "[stocks, days, {}]")
        _check_finite(series)
        decided = None
        for day in series.unbind(1)[-self.window :]:
            decided = self.append(day)
        return decided

    @torch.no_grad()
    def append(self, day: Tensor) -> Decisions | None:
        """Takes the features of a new day and decides for the day after.

        Args:
            day (Tensor): features of each stock, scaled as in the training.

        Shapes:
            - **day:** ``[S, F]``
            - **returns:** :class:`Decisions` with ``W = 1``, or ``None`` until there are `window` days

        Raises:
            ValueError: a size or device does not fit, or the day holds NaN or infinity; nothing was taken.
            TypeError: the dtype is not the model's; nothing was taken.
        """
        _check_series("day", self.model, day, self.graph, "[stocks, {}]")
        series = day.unsqueeze(1)
        _check_finite(series, "day")
        inputs = self._layer.inputs(series)
        if self._ring is None:
            self._ring = inputs.new_empty(2 * self.window, *inputs.shape[1:])
        slot = self.days % self.window
        self._ring[slot] = self._ring[slot + self.window] = inputs[0]
        self.days += 1
        if self.days < self.window:
            return None
        return _decide(self.model, self._layer, self._ring[slot + 1 :], self.window, 1, 1, self.threshold)


class _FirstLayer:
    """What the first layer computes a day at a time: ``W [x, g] + b`` of the three gates, for its recurrence."""

    def __init__(self, model: TGCN_HierarchicalMT, graph: Graph) -> None:
        self.cell = _cells(model)[0]
        self.graph = graph
        self.gates = [gate.detach() for gate in self.cell.gates()]
        width = self.cell.in_channels + self.cell.hidden_size
        self.weight = torch.cat([weight[:, :width] for weight in self.gates[::2]])
        self.bias = torch.cat(self.gates[1::2])
        # Looked up once: a new day is so little work that the way through the modules would show.
        stack = self.cell.gcn
        between = stack.conv_activation == "between"
        activations = ["leaky_relu"] * len(stack.convs)
        if between:
            activations[-1] = "sigmoid"
        params = [[param.detach() for param in conv.flat()] for conv in stack.convs]  # type: ignore[operator]
        self.convs = list(zip(params, activations, strict=True))
        self.convolve: Any = functional.gatv2_conv if stack.gat else functional.gcn_conv
        self.sigmoid_left = not between

    def inputs(self, series: Tensor) -> Tensor:
        """``[S, D, F]`` to ``[D, S, 3 H]``, contiguous."""
        g = series
        for params, activation in self.convs:
            g = self.convolve(g, self.graph, *params, activation=activation, backend=self.cell.gcn.backend)
        if self.sigmoid_left:
            g = torch.sigmoid(g)
        rows = torch.cat([series.transpose(0, 1), g.transpose(0, 1)], dim=-1)
        return F.linear(rows, self.weight, self.bias)

    def scan(self, inputs: Tensor, sequence: bool) -> Tensor:
        """The recurrence over windows ``[B, S, T, 3 H]`` of what :meth:`inputs` gave: ``[B * S, T, H]`` or the last."""
        native = _backend.native(self.cell.gcn.backend, inputs.device, inputs.dtype)
        run = _backend.operator("gated_scan_projected", native)
        return run(inputs.flatten(0, 1), self.gates, sequence)  # type: ignore[no-any-return]


def _chunks(
    model: TGCN_HierarchicalMT,
    series: Tensor,
    graph: Graph | DynamicGraph,
    window: int,
    starts: range,
    chunk: int,
    threshold: float,
) -> Iterator[tuple[range, Decisions]]:
    """Positions in `starts`, and what was decided there."""
    whole = range(len(starts))
    runs: Iterable[tuple[Graph, range]] = [(graph, whole)] if isinstance(graph, Graph) else []
    if isinstance(graph, DynamicGraph):
        runs = graph.runs([start + window - 1 for start in starts])
    for current, positions in runs:
        layer = _FirstLayer(model, current)
        # Days [first, last) of what the first layer reads are at hand.
        first = last = starts[positions.start]
        inputs: Tensor | None = None
        for begin in range(positions.start, positions.stop, chunk):
            part = range(begin, min(begin + chunk, positions.stop))
            begin_day, end_day = starts[part.start], starts[part.stop - 1] + window
            new = layer.inputs(series[:, max(begin_day, last) : end_day])
            kept = inputs is not None and begin_day < last
            inputs = torch.cat([inputs[begin_day - first :], new]) if kept and inputs is not None else new
            first, last = begin_day, end_day
            yield part, _decide(model, layer, inputs, window, len(part), starts.step, threshold)


def _decide(
    model: TGCN_HierarchicalMT,
    layer: _FirstLayer,
    inputs: Tensor,
    window: int,
    count: int,
    stride: int,
    threshold: float,
) -> Decisions:
    """Windows that start at days 0, stride, ... of what the first layer reads, ``[D, S, *]`` contiguous."""
    _, stocks, width = inputs.shape
    day = stocks * width
    windows = inputs.as_strided((count, stocks, window, width), (stride * day, width, day, 1), inputs.storage_offset())
    further = _cells(model)[1:]
    h = layer.scan(windows, sequence=bool(further))
    for i, cell in enumerate(further):
        h = cell.run_sequence(h, layer.graph, sequence=i < len(further) - 1)
    *_, probabilities, predictions, confidences = functional.decision(
        h, model._head_params(), threshold, backend=model.backend
    )
    return Decisions(
        predictions.reshape(count, stocks),
        confidences.reshape(count, stocks),
        probabilities.reshape(count, stocks, 4),
    )


def _cells(model: TGCN_HierarchicalMT) -> list[TGCNCell]:
    return list(model.tgcn_backbone.cells)  # type: ignore[arg-type]


def _check_model(model: object, graph: object, threshold: float, kinds: tuple[type, ...]) -> None:
    if not isinstance(model, TGCN_HierarchicalMT):
        raise TypeError(f"model: expected a hiermt.TGCN_HierarchicalMT, got {type(model).__name__}")
    if not isinstance(graph, kinds):
        raise TypeError(
            f"graph: expected a hiermt.{' or '.join(kind.__name__ for kind in kinds)}, got {type(graph).__name__}; use "
            "hiermt.Graph(edge_index, edge_weight, num_nodes)"
        )
    device = next(model.parameters()).device
    if graph.device != device:  # type: ignore[attr-defined]
        raise ValueError(f"the model is on {device}, the graph on {graph.device}; move one")  # type: ignore[attr-defined]
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold: expected a probability in [0, 1], got {threshold}")


def _check_names(model: TGCN_HierarchicalMT, names: Sequence[str] | None) -> None:
    check_same("series", as_names(names, model.tgcn_backbone.in_channels), model.feature_names)


def _check_series(
    name: str, model: TGCN_HierarchicalMT, series: Tensor, graph: Graph | DynamicGraph, shape: str
) -> None:
    """`shape` has a gap for the number of features."""
    channels, weight = model.tgcn_backbone.in_channels, next(model.parameters())
    if not isinstance(series, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(series).__name__}")
    if series.dim() != shape.count(",") + 1 or series.size(-1) != channels:
        raise ValueError(f"{name}: expected {shape.format(channels)}, got {list(series.shape)}")
    if series.size(0) != graph.num_nodes:
        raise ValueError(f"{name}: has {series.size(0)} stocks, the graph {graph.num_nodes} nodes")
    if series.device != weight.device:
        raise ValueError(f"{name} is on {series.device}, the model on {weight.device}; move one with .to(...)")
    if series.dtype != weight.dtype:
        raise TypeError(f"{name} is {series.dtype}, the model {weight.dtype}; convert one of them")


def _check_finite(series: Tensor, name: str = "series") -> None:
    # One pass over the series; only a sum that is not finite makes the second worth it.
    if math.isfinite(float(series.sum())):
        return
    finite = torch.isfinite(series)
    if bool(finite.all()):
        return
    stock, day, feature = (~finite).nonzero()[0].tolist()
    raise ValueError(f"{name}: stock {stock}, day {day}, feature {feature} is NaN or infinite; repair the series")


def _bar(parts: Iterable[tuple[range, Decisions]], total: int, enabled: bool) -> Iterator[tuple[range, Decisions]]:
    bar: Any = None
    if enabled:
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            bar = tqdm(total=total, desc="deciding", unit="window", leave=False)
    for part, decided in parts:
        yield part, decided
        if bar is not None:
            bar.update(len(part))
    if bar is not None:
        bar.close()
