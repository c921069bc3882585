"""Batches of windows: a fast loader that gathers on the device, and PyG's own for those who know it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hiermt.data._errors import DataError, need
from hiermt.data.dataset import WindowDataset, moved, same_device
from hiermt.graph import Graph


@dataclass(frozen=True)
class WindowBatch:
    """``B`` windows over one shared graph; a model given it returns ``[B, S, 2]``.

    Attributes:
        x (Tensor): features.
        edge_index, edge_weight (Tensor): the graph of one window, the same tensors in every batch.
        graph (Graph): the same graph, prepared.
        signal_labels, direction_labels (Tensor, optional): labels, if the dataset has any.
        starts (Tensor): first day of each window.

    Shapes:
        - **x:** ``[B, S, T, F]``
        - **edge_index:** ``[2, E]``, **edge_weight:** ``[E]``
        - **signal_labels**, **direction_labels:** ``[B, S]`` int64
        - **starts:** ``[B]`` int64
    """

    x: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None
    graph: Graph
    signal_labels: Tensor | None
    direction_labels: Tensor | None
    starts: Tensor

    @property
    def num_nodes(self) -> int:
        """Stocks in the batch: ``B * S``."""
        return self.x.size(0) * self.x.size(1)

    def to(self, device: torch.device | str) -> WindowBatch:
        """The same batch on another device; itself if it is already there."""
        device = torch.device(device)
        if same_device(self.x.device, device):
            return self
        return dataclasses.replace(self, **moved(self, device))


class WindowLoader:
    """Keeps series and labels on the device and gathers each batch of windows there.

    Nothing is stored per window and nothing is collated: a batch is one indexing operation on a view of the series,
    and all batches share one prepared graph. The order of the windows comes from a generator of the loader's own, so
    it does not depend on, or change, the global random state, and it is the same on every device.

    Args:
        dataset (WindowDataset): series, labels and graph.
        starts (iterable of int, optional): first day of each window. (default: all windows, those without a label
            only if none has one)
        batch_size (int): ``B``, windows in a batch. (default: ``32``)
        shuffle (bool): a new order in each epoch. (default: ``False``)
        seed (int): of the order. (default: ``0``)
        drop_last (bool): leave out a last batch that is not full. (default: ``False``)
        device: where series, labels and batches live. (default: where the dataset is)

    Raises:
        DataError: a start day has no window, or there is no window at all.
        ValueError: `batch_size` is below 1.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        starts: Iterable[int] | Tensor | None = None,
        batch_size: int = 32,
        shuffle: bool = False,
        *,
        seed: int = 0,
        drop_last: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.dataset = dataset if device is None else dataset.to(device)
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.starts = _starts(dataset, starts)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        if not len(self):
            raise DataError(f"starts: {self.starts.numel()} windows make no batch of {batch_size}; give more windows")
        # Without a label for every window asked for, the batches carry none.
        last = int(self.starts.max())
        self.labelled = last < dataset.num_labelled
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.starts.numel(), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[WindowBatch]:
        order = self.starts
        if self.shuffle:
            order = order[torch.randperm(order.numel(), generator=self.generator)]
        order = order.to(self.dataset.series.device)
        for i in range(len(self)):
            yield self.gather(order[i * self.batch_size : (i + 1) * self.batch_size])

    def gather(self, starts: Tensor) -> WindowBatch:
        """The batch of windows that start on these days, ``[B]`` int64 on the device of the dataset."""
        data = self.dataset
        labels = data.labels_by_day if self.labelled else None
        ends = starts + (data.window - 1)
        return WindowBatch(
            x=data.windows.index_select(0, starts),
            edge_index=data.edge_index,
            edge_weight=data.edge_weight,
            graph=data.graph,
            signal_labels=None if labels is None else labels[0].index_select(0, ends),
            direction_labels=None if labels is None else labels[1].index_select(0, ends),
            starts=starts,
        )


class PygDataset(torch.utils.data.Dataset[Any]):
    """One PyG ``Data`` per window, with ``x [S, T, F]``, the edges and, where there are any, the labels ``[S]``.

    Args:
        dataset (WindowDataset): series, labels and graph.
        starts (iterable of int, optional): first day of each window. (default: all labelled windows)

    Raises:
        ImportError: PyG is not installed.
        DataError: a start day has no window.
    """

    def __init__(self, dataset: WindowDataset, starts: Iterable[int] | Tensor | None = None) -> None:
        self._data = need("torch_geometric.data", "PygDataset").Data
        self.dataset = dataset
        self.starts = _starts(dataset, starts)
        self.labelled = not self.starts.numel() or int(self.starts.max()) < dataset.num_labelled

    def __len__(self) -> int:
        return self.starts.numel()

    def __getitem__(self, index: int) -> Any:
        data, start = self.dataset, int(self.starts[index])
        item = {"x": data.windows[start], "edge_index": data.edge_index, "num_nodes": data.num_stocks}
        if data.edge_weight is not None:
            item["edge_weight"] = data.edge_weight
        labels = data.labels_by_day if self.labelled else None
        if labels is not None:
            end = start + data.window - 1
            item["signal_labels"], item["direction_labels"] = labels[0][end], labels[1][end]
        return self._data(**item)


def pyg_loader(
    dataset: WindowDataset,
    starts: Iterable[int] | Tensor | None = None,
    batch_size: int = 32,
    shuffle: bool = False,
    *,
    seed: int = 0,
    **options: Any,
) -> Any:
    """A ``torch_geometric.loader.DataLoader`` over the windows: ``x [B * S, T, F]`` and repeated edges.

    Args:
        dataset (WindowDataset): series, labels and graph.
        starts (iterable of int, optional): first day of each window. (default: all labelled windows)
        batch_size (int): graphs in a batch. (default: ``32``)
        shuffle (bool): a new order in each epoch. (default: ``False``)
        seed (int): of the order; the same as that of a :class:`WindowLoader`. (default: ``0``)
        options: passed on, such as ``num_workers`` or ``drop_last``.

    Raises:
        ImportError: PyG is not installed; the message gives the command.
    """
    loader = need("torch_geometric.loader", "pyg_loader").DataLoader
    items = PygDataset(dataset, starts)
    if shuffle:
        options["sampler"] = _Order(len(items), seed)
    return loader(items, batch_size=batch_size, **options)


class _Order(torch.utils.data.Sampler[int]):
    """The order in which a :class:`WindowLoader` with the same seed visits its windows."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.size, generator=self.generator).tolist()


def _starts(dataset: WindowDataset, starts: Iterable[int] | Tensor | None) -> Tensor:
    if starts is None:
        return torch.arange(dataset.num_labelled or dataset.num_windows)
    if isinstance(starts, Tensor):
        if starts.is_floating_point() or starts.dim() != 1:
            raise DataError(f"starts: expected a vector of integers, got {starts.dtype} {list(starts.shape)}")
        starts = starts.cpu().long()
    else:
        starts = torch.tensor(list(starts), dtype=torch.int64)
    dataset.check_starts(starts, labelled=False)
    return starts
