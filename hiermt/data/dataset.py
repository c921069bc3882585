"""A series with labels and a graph, from which windows are cut on demand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hiermt.data._errors import DataError
from hiermt.data.feature_names import as_names, check_same
from hiermt.data.feature_table import FeatureTable, check_present
from hiermt.data.labels import THRESHOLD, hierarchical_labels, next_returns
from hiermt.data.scale import Scale
from hiermt.data.windows import num_windows, windows
from hiermt.graph import DynamicGraph, Graph, as_graph, same_device

# Attributes of a batch that no target may hide.
_TAKEN = {"x", "edge_index", "edge_weight", "edge_attr", "graph", "windows", "starts", "day_span", "feature_names"}
_TAKEN |= {"signal_labels", "direction_labels", "num_nodes", "targets", "to", "batch", "ptr", "present"}

MASK = "target_mask"
"""The target that says which rows count."""


@dataclass(frozen=True)
class WindowDataset:
    """Features, labels and graph for a loader. Window ``w`` has days ``w`` to ``w + T - 1`` and the label of the last.

    Attributes:
        series (Tensor): features, scaled as the model expects them.
        edge_index, edge_weight (Tensor): one graph, shared by all windows; the weights may be ``None``.
        window (int): ``T``.
        signal_labels, direction_labels (Tensor, optional): labels of each day; the last days may have none.
        graphs (DynamicGraph, optional): graphs that change over time, in place of `edge_index` and `edge_weight`; see
            :meth:`with_graphs`.
        feature_names (tuple of str, optional): names along the last dimension of `series`; a model with other names
            refuses the dataset. ``None`` fits any model.
        targets (mapping, optional): other targets of each day by name: classes, real numbers of one or several
            horizons, or ``target_mask`` (bool), the rows that count. Batches have attributes of these names, which
            :mod:`hiermt.tasks` reads. NaN is a missing target.
        present (Tensor, optional): which stock is there on which day. Elsewhere the series may be NaN, a model takes no
            message from the stock and holds its state, and its row counts in no loss and no score of a window that
            ends there. (default: ``None``, all of them)

    Shapes:
        - **series:** ``[S, D, F]``
        - **edge_index:** ``[2, E]``, **edge_weight:** ``[E]``
        - **signal_labels**, **direction_labels:** ``[S, L]`` int64 with ``L <= D``
        - **targets:** ``[S, L, *]`` with ``L <= D``, each with its own ``L``
        - **present:** ``[S, D]`` bool

    Raises:
        DataError: a shape or name does not fit, labels are not 0 or 1, or the series holds NaN or infinity where a
            stock is present.
        IndexError: a node of an edge is not in ``[0, S)``.
        TypeError: `window` is not an integer.
        ValueError: `window` is below 1.
    """

    series: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None
    window: int
    signal_labels: Tensor | None = None
    direction_labels: Tensor | None = None
    graphs: DynamicGraph | None = None
    feature_names: tuple[str, ...] | None = None
    targets: Mapping[str, Tensor] | None = None
    present: Tensor | None = None

    def __post_init__(self) -> None:
        windows(self.series, self.window)
        object.__setattr__(self, "window", int(self.window))
        names = as_names(self.feature_names, self.series.size(-1))
        object.__setattr__(self, "feature_names", names)
        finite = torch.isfinite(self.series)
        if self.present is not None:
            check_present(self.present, self.series)
            finite = finite | ~self.present.unsqueeze(-1)
        if not bool(finite.all()):
            stock, day, feature = (~finite).nonzero()[0].tolist()
            label = feature if names is None else names[feature]
            raise DataError(
                f"series: stock {stock}, day {day}, feature {label} is NaN or infinite; repair the series"
                + (", or give present= where stocks are absent" if self.present is None else "")
            )
        if (self.signal_labels is None) != (self.direction_labels is None):
            raise DataError("signal_labels, direction_labels: give both or neither")
        for name in ("signal_labels", "direction_labels"):
            labels = getattr(self, name)
            if labels is None:
                continue
            if labels.dim() != 2 or labels.size(0) != self.num_stocks or labels.size(1) > self.num_days:
                raise DataError(
                    f"{name}: expected [{self.num_stocks}, days] with at most {self.num_days} days, got "
                    f"{list(labels.shape)}"
                )
            if bool(((labels != 0) & (labels != 1)).any()):
                raise DataError(f"{name}: expected 0 and 1 only, got {sorted(set(labels.flatten().tolist()))[:5]}")
        shapes = {tuple(t.shape) for t in (self.signal_labels, self.direction_labels) if t is not None}
        if len(shapes) > 1:
            given = " and ".join(str(list(shape)) for shape in sorted(shapes))
            raise DataError(f"signal_labels, direction_labels: expected the same shape, got {given}")
        self._check_targets()
        if self.graphs is not None and self.graphs.num_nodes != self.num_stocks:
            raise DataError(f"graphs: expected {self.num_stocks} nodes, one per stock, got {self.graphs.num_nodes}")
        if self.graphs is not None and self.graphs.days[0] > self.window - 1:
            raise DataError(
                f"graphs: the first is valid from day {self.graphs.days[0]} on, but the first window ends on day "
                f"{self.window - 1}"
            )
        # Checks the edges now; the graph is prepared once for all loaders.
        _ = self.graph

    @classmethod
    def from_table(
        cls,
        table: FeatureTable,
        edge_index: Tensor,
        edge_weight: Tensor | None,
        window: int = 25,
        *,
        scale: Scale | None = None,
        threshold: float = THRESHOLD,
        horizon: int = 1,
    ) -> WindowDataset:
        """Computes labels from the closes of a table, and scales its features.

        Args:
            table (FeatureTable): features and closes.
            edge_index, edge_weight (Tensor): graph of its stocks.
            window (int): ``T``. (default: ``25``)
            scale (Scale, optional): fitted on the training days. (default: ``None``, features as they are)
            threshold (float): of the labels. (default: ``0.0055``)
            horizon (int): trading days ahead. (default: ``1``)

        Where stocks are absent in the table, a day without a price `horizon` days later has no label: the target
        ``target_mask`` leaves it out.

        Raises:
            ValueError: `scale` was fitted on other features, or on the same in another order.
        """
        if scale is not None:
            check_same("table", table.names, scale.names, "the scale")
        returns, targets = next_returns(table.close, horizon), None
        if table.present is not None:
            there = torch.isfinite(returns) & table.present[:, : returns.size(1)]
            returns, targets = returns.where(there, 0.0), {MASK: there}
        signal, direction = hierarchical_labels(returns, threshold)
        series = table.values if scale is None else scale.apply(table.values)
        return cls(
            series,
            edge_index,
            edge_weight,
            window,
            signal,
            direction,
            feature_names=table.names,
            targets=targets,
            present=table.present,
        )

    @classmethod
    def with_graphs(
        cls,
        series: Tensor,
        graphs: DynamicGraph,
        window: int,
        signal_labels: Tensor | None = None,
        direction_labels: Tensor | None = None,
        *,
        feature_names: Sequence[str] | None = None,
        targets: Mapping[str, Tensor] | None = None,
        present: Tensor | None = None,
    ) -> WindowDataset:
        """A dataset whose graph changes over time: a window is computed on the graph of its last day.

        Args:
            series (Tensor): features, ``[S, D, F]``.
            graphs (DynamicGraph): one graph for each block of days.
            window (int): ``T``.
            signal_labels, direction_labels (Tensor, optional): labels of each day.
            feature_names (sequence of str, optional): of the series. (default: ``None``)
            targets (mapping, optional): other targets of each day. (default: ``None``)
            present (Tensor, optional): which stock is there on which day. (default: ``None``)

        Raises:
            DataError: a graph has another number of nodes than there are stocks, or the first window has none.
        """
        first = graphs.graphs[0]
        return cls(
            series,
            first.edge_index,
            first.edge_weight,
            window,
            signal_labels,
            direction_labels,
            graphs,
            as_names(feature_names, series.size(-1)),
            targets,
            present,
        )

    @property
    def num_stocks(self) -> int:
        """``S``."""
        return self.series.size(0)

    @property
    def num_days(self) -> int:
        """``D``."""
        return self.series.size(1)

    @property
    def num_windows(self) -> int:
        """Number of windows, labelled or not."""
        return num_windows(self.num_days, self.window)

    @property
    def num_labelled(self) -> int:
        """Number of windows whose last day has every label and target; they come first."""
        days = [labels.size(0) for labels in self.labels_by_day.values()]
        return num_windows(min(days), self.window) if days else 0

    @cached_property
    def windows(self) -> Tensor:
        """All windows ``[W, S, T, F]``, a view of the series."""
        return windows(self.series, self.window)

    @cached_property
    def labels_by_day(self) -> dict[str, Tensor]:
        """Labels and targets ``[L, S, *]`` by name, the layout from which batches are gathered."""
        labels = {
            "signal_labels": self.signal_labels,
            "direction_labels": self.direction_labels,
            **(self.targets or {}),
        }
        return {name: each.transpose(0, 1).contiguous() for name, each in labels.items() if each is not None}

    @cached_property
    def graph(self) -> Graph:
        """The graph, validated and prepared once; the first of several."""
        if self.graphs is not None:
            return self.graphs.graphs[0]
        return as_graph(self.edge_index, self.edge_weight, self.num_stocks)

    def to(self, device: torch.device | str) -> WindowDataset:
        """The same dataset on another device; itself if it is there already."""
        device = torch.device(device)
        if same_device(self.series.device, device):
            return self
        return dataclasses.replace(self, **moved(self, device))

    def _check_targets(self) -> None:
        if self.targets is None:
            return
        if not isinstance(self.targets, Mapping):
            raise DataError(f"targets: expected a mapping such as {{'y': tensor}}, got {type(self.targets).__name__}")
        for name, target in self.targets.items():
            if not isinstance(name, str) or not name.isidentifier() or name in _TAKEN:
                raise DataError(f"targets: {name!r} cannot be the name of a target; use one such as 'y'")
            if not isinstance(target, Tensor):
                raise DataError(f"targets[{name!r}]: expected a Tensor, got {type(target).__name__}")
            if target.dim() < 2 or target.size(0) != self.num_stocks or target.size(1) > self.num_days:
                raise DataError(
                    f"targets[{name!r}]: expected [{self.num_stocks}, days, ...] with at most {self.num_days} days, "
                    f"got {list(target.shape)}"
                )
        object.__setattr__(self, "targets", dict(self.targets))

    def check_starts(self, starts: Tensor, labelled: bool) -> None:
        """Refuses start days without a window, or without a label if `labelled`."""
        limit = self.num_labelled if labelled else self.num_windows
        if starts.numel() and not 0 <= int(starts.min()) <= int(starts.max()) < limit:
            kind = "labelled windows" if labelled else "windows"
            raise DataError(
                f"starts: expected days in [0, {limit}), the {kind}, got {int(starts.min())} to {int(starts.max())}"
            )


def moved(holder: Any, device: torch.device) -> dict[str, Any]:
    """The tensors and graphs among the fields of a dataclass, moved to a device."""
    fields = {field.name: getattr(holder, field.name) for field in dataclasses.fields(holder)}
    kinds = (Tensor, Graph, DynamicGraph)
    found: dict[str, Any] = {name: value.to(device) for name, value in fields.items() if isinstance(value, kinds)}
    if fields.get("targets"):
        found["targets"] = {name: target.to(device) for name, target in fields["targets"].items()}
    return found
