"""Windows as PyG data: a dataset, and the loader of PyG over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from hiermt._arguments import check_integer
from hiermt.data.dataset import WindowDataset
from hiermt.data.optional import import_optional
from hiermt.data.window_loader import shuffled, start_days


class PygDataset(torch.utils.data.Dataset[Any]):
    """One PyG ``Data`` per window, with ``x [S, T, F]``, the edges, and labels and targets if there are any.

    Where stocks come and go, it has ``present [S, T]``, too. A model of this package reads both in a batch of a
    ``DataLoader``: ``model(batch.x, batch.edge_index, batch.edge_weight, present=batch.present)``.

    Args:
        dataset (WindowDataset): series, labels and graph.
        starts (iterable of int, optional): first day of each window. (default: all labelled windows)

    Raises:
        ImportError: PyG is not installed.
        DataError: a start day has no window.
    """

    def __init__(self, dataset: WindowDataset, starts: Iterable[int] | Tensor | None = None) -> None:
        self._data = import_optional("torch_geometric.data", "PygDataset").Data
        self.dataset = dataset
        self.starts = start_days(dataset, starts)
        self.labelled = not self.starts.numel() or int(self.starts.max()) < dataset.num_labelled

    def __len__(self) -> int:
        return self.starts.numel()

    def __getitem__(self, index: int) -> Any:
        data, start = self.dataset, int(self.starts[index])
        edge_index, edge_weight = data.edge_index, data.edge_weight
        if data.graphs is not None:
            graph = data.graphs.at(start + data.window - 1)
            edge_index, edge_weight = graph.edge_index, graph.edge_weight
        item = {"x": data.windows[start], "edge_index": edge_index, "num_nodes": data.num_stocks}
        if edge_weight is not None:
            item["edge_weight"] = edge_weight
        if data.present is not None:
            item["present"] = data.present[:, start : start + data.window]
        if self.labelled:
            end = start + data.window - 1
            item |= {name: labels[end] for name, labels in data.labels_by_day.items()}
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
        seed (int): of the order, which equals that of a :class:`WindowLoader`. (default: ``0``)
        options: for the ``DataLoader``, such as ``num_workers`` or ``drop_last``.

    Returns:
        The loader, whose ``Batch`` has the items of :class:`hiermt.data.pyg.PygDataset`.

    Raises:
        ImportError: PyG is not installed; the message gives the command.
        TypeError: a start day, `batch_size` or `seed` is not an integer.
        ValueError: `batch_size` is below 1.
    """
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, -(2**63))
    loader = import_optional("torch_geometric.loader", "pyg_loader").DataLoader
    items = PygDataset(dataset, starts)
    if shuffle:
        options["sampler"] = _Order(len(items), seed)
    return loader(items, batch_size=int(batch_size), **options)


class _Order(torch.utils.data.Sampler[int]):
    """The order of a :class:`WindowLoader` with the same seed."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.generator = torch.Generator(device="cpu").manual_seed(int(seed))

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from shuffled(self.size, self.generator).tolist()
