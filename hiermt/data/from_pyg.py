"""A PyG dataset of windows that overlap, turned back into the one series that they are slices of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt._arguments import check_integer
from hiermt.data._errors import DataError
from hiermt.data.dataset import WindowDataset
from hiermt.data.feature_table import check_present
from hiermt.data.window_loader import WindowLoader
from hiermt.graph import DynamicGraph, Graph

_LABELS = ("signal_labels", "direction_labels")
# Attributes of a Data that are neither features nor targets.
_STRUCTURE = {"x", "edge_index", "edge_weight", "edge_attr", "num_nodes", "batch", "ptr", "pos", "present"}


def from_pyg_dataset(
    dataset: Sequence[Any] | Iterable[Any],
    batch_size: int = 32,
    shuffle: bool = False,
    *,
    layout: str = "NFT",
    stride: int = 1,
    targets: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> WindowLoader:
    """A :class:`WindowLoader` with the windows of a PyG dataset, stored once.

    Each window is compared with the one before: all but its last `stride` days must be there already, bit by bit. The
    windows are read once, one at a time, so that a dataset of one file a window is read once in place of each epoch.

    Args:
        dataset (sequence or iterable): ``Data`` of consecutive windows, with `x`, `edge_index` and perhaps
            `edge_weight`, which may change from window to window, and perhaps `present`, the days on which a stock is
            there; x is not compared elsewhere.
        batch_size, shuffle, options: as for :class:`WindowLoader`.
        layout (str): order of x in the dataset, ``"NFT"`` as the published datasets or ``"NTF"``. Batches have that of
            a :class:`WindowLoader`, ``[B, S, T, F]``. (default: ``"NFT"``)
        stride (int): days from one window to the next. (default: ``1``)
        targets (sequence of str, optional): attributes to take as targets; ``signal_labels`` and ``direction_labels``
            become labels. (default: ``None``, every attribute with one row a node that is not part of the graph)
        feature_names (sequence of str, optional): as for :class:`WindowDataset`. (default: ``None``)
        progress (bool): show a bar, if ``tqdm`` is installed. (default: ``True``)

    Shapes:
        - **x:** ``[S, F, T]`` for layout ``"NFT"``, ``[S, T, F]`` for ``"NTF"``; **present:** ``[S, T]`` bool;
          targets ``[S]``, ``[S, 1]`` or ``[S, K]``

    Raises:
        DataError: a window is not a slice of the same series, or differs in its nodes, features or attributes; the
            message says which one. Or the dataset is empty.
        TypeError: an item is not a ``Data``, or `stride` is not an integer.
        ValueError: `layout` or `stride` is out of range, or a window has `edge_attr` and no `edge_weight`.
    """
    if layout not in ("NTF", "NFT"):
        raise ValueError(f"layout: expected 'NTF' or 'NFT', got {layout!r}")
    stride = check_integer("stride", stride, 1)
    reader = _Reader(layout, stride, targets)
    for index, item in enumerate(_bar(_items(dataset), progress)):
        reader.add(index, item)
    if reader.count == 0:
        raise DataError("dataset: has no windows")
    read = reader.dataset(feature_names)
    return WindowLoader(read, range(0, reader.count * stride, stride), batch_size, shuffle, **options)


def _items(dataset: Any) -> Iterator[Any]:
    """The items by number where there are numbers: iteration over a PyG ``Dataset`` may go through a sampler."""
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return (dataset[i] for i in range(len(dataset)))
    if not hasattr(dataset, "__iter__"):
        raise TypeError(f"dataset: expected a sequence of Data, got {type(dataset).__name__}")
    return iter(dataset)


class _Reader:
    """Days, graphs and targets of the windows so far."""

    def __init__(self, layout: str, stride: int, targets: Sequence[str] | None) -> None:
        self.layout, self.stride = layout, stride
        self.names: list[str] | None = None if targets is None else list(targets)
        self.count, self.window = 0, 0
        self.days: list[Tensor] = []
        self.present: list[Tensor] = []
        self.last: Any = None
        self.last_present: Tensor | None = None
        self.blocks: list[tuple[int, tuple[Tensor, Tensor | None]]] = []
        self.targets: dict[str, list[Tensor]] = {}

    def add(self, index: int, item: Any) -> None:
        x = getattr(item, "x", None)
        if not isinstance(x, Tensor) or not isinstance(getattr(item, "edge_index", None), Tensor):
            raise TypeError(f"window {index}: expected a Data with x and edge_index, got {type(item).__name__}")
        if x.dim() != 3:
            raise DataError(f"window {index}: expected x of {_dims(self.layout)}, got {list(x.shape)}")
        x = x.transpose(1, 2) if self.layout == "NFT" else x
        present = self._present(item, x, index)
        if present is not None:
            x = x.masked_fill(~present.unsqueeze(-1), 0.0)
        new = 0
        if self.count == 0:
            self.window = x.size(1)
            self.names = self._names(item, x.size(0)) if self.names is None else self.names
        else:
            self._check(index, x, present)
            new = max(self.window - self.stride, 0)
        self.days.append(x[:, new:])
        if present is not None:
            self.present.append(present[:, new:])
        self.last, self.last_present = x, present
        self._graph(item, index)
        for name in self.names or ():
            self.targets.setdefault(name, []).append(self._target(item, name, index))
        self.count += 1

    def _present(self, item: Any, x: Tensor, index: int) -> Tensor | None:
        present = getattr(item, "present", None)
        if (present is None) != (self.last_present is None) and self.count:
            raise DataError(f"window {index}: give present to all windows or to none of them")
        if present is not None:
            check_present(present, x)
        return present

    def _check(self, index: int, x: Tensor, present: Tensor | None) -> None:
        if x.shape != self.last.shape or x.dtype != self.last.dtype:
            raise DataError(
                f"window {index}: expected x like that of the windows before, as [S, T, F] {list(self.last.shape)} "
                f"{self.last.dtype}, got {list(x.shape)} {x.dtype}"
            )
        if self.stride > self.window:
            raise ValueError(f"stride: expected at most the length of a window, {self.window}, got {self.stride}")
        both = self.window - self.stride
        same = torch.equal(x[:, :both], self.last[:, self.stride :])
        if present is not None and self.last_present is not None:
            same = same and torch.equal(present[:, :both], self.last_present[:, self.stride :])
        if not same:
            other = "NTF" if self.layout == "NFT" else "NFT"
            raise DataError(
                f"window {index}: is not the window before, moved by {self.stride} of {self.window} days; the windows "
                f"must be slices of one series, in order. Sort the dataset, give its stride, or try layout={other!r}"
            )

    def _graph(self, item: Any, index: int) -> None:
        weight = getattr(item, "edge_weight", None)
        if weight is None and getattr(item, "edge_attr", None) is not None:
            raise ValueError(f"window {index}: has edge_attr but no edge_weight; rename it, or its weights are ignored")
        if self.blocks and _same_graph(self.blocks[-1][1], item.edge_index, weight):
            return
        self.blocks.append((self.count * self.stride + self.window - 1, (item.edge_index, weight)))

    def _names(self, item: Any, nodes: int) -> list[str]:
        keys = item.keys() if callable(getattr(item, "keys", None)) else vars(item)
        found = [key for key in keys if key not in _STRUCTURE and isinstance(getattr(item, key), Tensor)]
        return [key for key in found if getattr(item, key).dim() and getattr(item, key).size(0) == nodes]

    def _target(self, item: Any, name: str, index: int) -> Tensor:
        found = getattr(item, name, None)
        nodes = self.last.size(0)
        if not isinstance(found, Tensor) or not found.dim() or found.size(0) != nodes:
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(f"window {index}: expected {name} with one row for each of {nodes} nodes, got {got}")
        before = self.targets.get(name)
        found = found.squeeze(1) if found.dim() == 2 and found.size(1) == 1 else found
        if before and (found.shape != before[0].shape or found.dtype != before[0].dtype):
            raise DataError(
                f"window {index}: expected {name} like that of the windows before, {list(before[0].shape)} "
                f"{before[0].dtype}, got {list(found.shape)} {found.dtype}"
            )
        return found

    def dataset(self, feature_names: Sequence[str] | None) -> WindowDataset:
        by_day = {name: self._by_day(values) for name, values in self.targets.items()}
        labels = [by_day.pop(name) for name in _LABELS] if by_day.keys() >= set(_LABELS) else [None, None]
        series = torch.cat(self.days, 1)
        present = torch.cat(self.present, 1) if self.present else None
        nodes = series.size(0)
        names = None if feature_names is None else tuple(feature_names)
        if len(self.blocks) == 1:
            edge_index, edge_weight = self.blocks[0][1]
            signal, direction = labels
            return WindowDataset(
                series,
                edge_index,
                edge_weight,
                self.window,
                signal,
                direction,
                feature_names=names,
                targets=by_day or None,
                present=present,
            )
        graphs = DynamicGraph([(day, Graph(*edges, nodes)) for day, edges in self.blocks])
        return WindowDataset.with_graphs(
            series,
            graphs,
            self.window,
            *labels,
            feature_names=feature_names,
            targets=by_day or None,
            present=present,
        )

    def _by_day(self, values: list[Tensor]) -> Tensor:
        """``[S, L, *]``, with the values on the last day of each window; days without one are never read."""
        days = (self.count - 1) * self.stride + self.window
        found = values[0].new_zeros(values[0].size(0), days, *values[0].shape[1:])
        found[:, self.window - 1 :: self.stride] = torch.stack(values, 1)
        return found


def _same_graph(before: tuple[Tensor, Tensor | None], edge_index: Tensor, weight: Tensor | None) -> bool:
    known, known_weight = before
    if weight is None or known_weight is None:
        equal = weight is known_weight
    else:
        equal = weight is known_weight or torch.equal(weight, known_weight)
    return equal and (edge_index is known or torch.equal(edge_index, known))


def _dims(layout: str) -> str:
    return "[S, F, T]" if layout == "NFT" else "[S, T, F]"


def _bar(items: Iterable[Any], enabled: bool) -> Iterable[Any]:
    if not enabled:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc="reading windows", unit="window", leave=False, disable=None)  # type: ignore[no-any-return]
