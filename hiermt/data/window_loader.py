"""A loader that keeps a series on the device and gathers batches there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hiermt._arguments import check_integer
from hiermt.data._errors import DataError
from hiermt.data.dataset import WindowDataset, moved
from hiermt.graph import Graph, same_device
from hiermt.windows import DayRange, Windows

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass
class WindowBatch:
    """``B`` windows over one shared graph; a model given their `x`, or `windows`, returns ``[B, S, 2]``.

    Attributes:
        windows (Windows): the series and the first day of each window; nothing is copied.
        x (Tensor): features of the windows, gathered at the first access.
        edge_index, edge_weight (Tensor): the graph of one window, the same tensors in every batch.
        graph (Graph): the prepared graph.
        signal_labels, direction_labels (Tensor, optional): labels, if the dataset has any.
        starts (Tensor): first day of each window.
        day_span (DayRange, optional): the days of the windows, as far as known without a sync.
        feature_names (tuple of str, optional): those of the dataset.
        targets (dict): the other targets of the dataset, which are attributes, too: ``batch.y`` for ``"y"``.
        present (Tensor, optional): the days on which a stock is there, gathered at each access; ``None`` if the dataset
            has no mask.

    Shapes:
        - **x:** ``[B, S, T, F]``; **present:** ``[B, S, T]`` bool
        - **edge_index:** ``[2, E]``, **edge_weight:** ``[E]``
        - **signal_labels**, **direction_labels:** ``[B, S]`` int64
        - **targets:** ``[B, S, *]``
        - **starts:** ``[B]`` int64
    """

    windows: Windows
    edge_index: Tensor
    edge_weight: Tensor | None
    graph: Graph
    signal_labels: Tensor | None
    direction_labels: Tensor | None
    starts: Tensor
    day_span: DayRange | None = None
    feature_names: tuple[str, ...] | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Tensor:
        # Called for names that are not found otherwise; copy and pickle ask before there are fields.
        found = self.__dict__.get("targets", {}).get(name)
        if found is None:
            raise AttributeError(f"a WindowBatch has no {name!r}; the dataset has no target of that name")
        return found  # type: ignore[no-any-return]

    @property
    def x(self) -> Tensor:
        """The features, ``[B, S, T, F]``."""
        # A library that converts a batch, such as Lightning in bf16-true, replaces the windows of a copy.
        gathered = self.__dict__.get("_gathered")
        if gathered is None or gathered[0] is not self.windows:
            # The loader has checked the first days.
            gathered = self.__dict__["_gathered"] = self.windows, self.windows.gather(check=False)
        return gathered[1]

    @property
    def present(self) -> Tensor | None:
        """The days on which a stock is there, ``[B, S, T]``."""
        return self.windows.gather_present()

    @property
    def num_nodes(self) -> int:
        """Stocks in the batch: ``B * S``."""
        return self.windows.starts.size(0) * self.windows.series.size(0)

    def to(self, device: torch.device | str) -> WindowBatch:
        """The same batch on another device; itself if it is there already. Only days of its windows are copied."""
        device = torch.device(device)
        if same_device(self.windows.series.device, device):
            return self
        windows = self.windows.shared().to(device)
        days = windows.series.size(1)
        return dataclasses.replace(self, **moved(self, device), windows=windows, day_span=DayRange(0, days, days))


class PlannedBatch(NamedTuple):
    """First days of a batch on the device, the graph of the batch, and its days as far as known without a sync."""

    starts: Tensor
    graph: Graph
    day_span: DayRange | None


class WindowLoader:
    """Keeps series and labels on the device and gathers each batch of windows there.

    Nothing is stored per window and nothing is collated: a batch is one gather from the series, and all batches share
    one prepared graph. The windows are shuffled on the device. The order follows from one random number per epoch, from
    a generator of the loader: it is the same on every device and independent of the global random state.

    If the graph changes over time, all windows of a batch have the same graph: batches are formed within a block of
    days, then shuffled.

    Args:
        dataset (WindowDataset): series, labels and graph.
        starts (iterable of int, optional): first day of each window. (default: all labelled windows, or all windows if
            there are no labels)
        batch_size (int): ``B``, windows in a batch. (default: ``32``)
        shuffle (bool): use a new order in each epoch. (default: ``False``)
        seed (int): of the order. (default: ``0``)
        drop_last (bool): leave out smaller batches. (default: ``False``)
        sampler (Sampler, optional): positions in `starts` for this process, in order, such as
            ``torch.utils.data.DistributedSampler(loader_starts, shuffle=True)``; its ``set_epoch`` is called with
            the number of the epoch. Excludes `shuffle`. (default: ``None``)
        device: of series, labels and batches. (default: that of the dataset)

    Raises:
        DataError: a start day has no window, or there are no windows.
        TypeError: a start day, `batch_size` or `seed` is not an integer.
        ValueError: `batch_size` is below 1, or both `shuffle` and `sampler` are given.
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
        sampler: Iterable[int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.dataset = dataset if device is None else dataset.to(device)
        check_integer("batch_size", batch_size, 1)
        check_integer("seed", seed, -(2**63))
        self.batch_size, self.shuffle, self.drop_last = int(batch_size), shuffle, drop_last
        self.starts = start_days(dataset, starts)
        self.sampler, self.epoch = sampler, 0
        if shuffle and sampler is not None:
            raise ValueError("shuffle, sampler: the sampler sets the order; give one of the two")
        graphs = dataset.graphs
        # The block of days whose graph a window uses.
        self._block = (
            torch.zeros(self.starts.numel(), dtype=torch.int64, device="cpu")
            if graphs is None
            else _indices(graphs.block_of(day) for day in (self.starts + dataset.window - 1).tolist())
        )
        if not len(self):
            raise DataError(f"starts: {self.starts.numel()} windows make no batch of {batch_size}; give more windows")
        # Batches have labels only if every window has one.
        last = int(self.starts.max())
        self.labelled = last < dataset.num_labelled
        self.generator = torch.Generator(device="cpu").manual_seed(int(seed))
        device = self.dataset.series.device
        self._on_device = self.starts.to(device), self._block.to(device)
        self._day_spans = self._find_day_spans()

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.sampler is None:
            counts: list[int] = self._block.bincount().tolist()
        else:
            if self.dataset.graphs is not None:
                return len(self._cuts(self._block[_indices(self.sampler)].tolist()))
            counts = [len(self.sampler)]  # type: ignore[arg-type]
        full = sum(count // self.batch_size for count in counts)
        return full + (0 if self.drop_last else sum(count % self.batch_size > 0 for count in counts))

    def __iter__(self) -> Iterator[WindowBatch]:
        for planned in self.plan():
            yield self.gather(*planned)

    def plan(self) -> list[PlannedBatch]:
        """The batches of the next epoch."""
        order, graphs = self._order(), self.dataset.graphs
        starts, block = self._on_device
        if graphs is None:
            cuts = self._cuts([0] * order.numel())
        else:
            # Group the windows by block, in a stable order. Without a sampler, the size of each block is known on the
            # host.
            here = self._block if self.sampler is None else self._block[order.cpu()]
            order = order[block[order].sort(stable=True).indices]
            cuts = self._cuts(here.sort().values.tolist())
            if self.shuffle:
                cuts = [
                    cuts[i]
                    for i in torch.randperm(
                        len(cuts), generator=self.generator, dtype=torch.int64, device="cpu"
                    ).tolist()
                ]
        starts = starts[order]
        return [
            PlannedBatch(
                starts[part.start : part.stop],
                self.dataset.graph if graphs is None else graphs.graphs[block],
                self._day_spans.get(block),
            )
            for part, block in cuts
        ]

    def gather(self, starts: Tensor, graph: Graph | None = None, day_span: DayRange | None = None) -> WindowBatch:
        """The batch of windows that start on these days, ``[B]`` int64 on the device of the dataset.

        `day_span` are the days of the windows; on a GPU, days are shared only if it is given.
        """
        data = self.dataset
        ends = starts + (data.window - 1)
        by_day = data.labels_by_day if self.labelled else {}
        labels = {name: each.index_select(0, ends) for name, each in by_day.items()}
        graph = data.graph if graph is None else graph
        own = data.graphs is None
        return WindowBatch(
            windows=Windows(data.series, starts, data.window, data.present),
            edge_index=data.edge_index if own else graph.edge_index,
            edge_weight=data.edge_weight if own else graph.edge_weight,
            graph=graph,
            signal_labels=labels.pop("signal_labels", None),
            direction_labels=labels.pop("direction_labels", None),
            starts=starts,
            day_span=day_span,
            feature_names=data.feature_names,
            targets=labels,
        )

    def state_dict(self) -> dict[str, Any]:
        """State of the order: the generator and the number of the epoch."""
        return {"generator": self.generator.get_state(), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of :meth:`state_dict`."""
        self.generator.set_state(state["generator"])
        self.epoch = int(state["epoch"])

    def _find_day_spans(self) -> dict[int, DayRange]:
        """Days of the batches of each block, without blocks in which a day belongs to no window.

        All batches of a block get the same number of days, so that their shapes are equal and can be captured.
        """
        window = self.dataset.window
        found: dict[int, DayRange] = {}
        for block in set(self._block.tolist()):
            starts = self.starts[self._block == block]
            if bool((starts.sort().values.diff() > window).any()):
                continue
            first, stop = int(starts.min()), int(starts.max()) + window
            days = stop - first
            if not self.shuffle and self.sampler is None:
                parts = torch.split(starts, self.batch_size)
                days = max(int(part.max() - part.min()) + window for part in parts)
            found[block] = DayRange(first, stop, days)
        return found

    def _order(self) -> Tensor:
        """Positions in `starts`, in the order of the next epoch, on the device."""
        if self.sampler is not None:
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(self.epoch)
            order = _indices(self.sampler).to(self._on_device[0].device)
        elif self.shuffle:
            order = shuffled(self.starts.numel(), self.generator, self._on_device[0].device)
        else:
            order = torch.arange(self.starts.numel(), dtype=torch.int64, device=self._on_device[0].device)
        self.epoch += 1
        return order

    def _cuts(self, blocks: list[int]) -> list[tuple[range, int]]:
        """Range of positions and block of each batch, for windows with these blocks."""
        cuts: list[tuple[range, int]] = []
        begin = 0
        for i in range(1, len(blocks) + 1):
            if i < len(blocks) and i - begin < self.batch_size and blocks[i] == blocks[begin]:
                continue
            if not self.drop_last or i - begin == self.batch_size:
                cuts.append((range(begin, i), blocks[begin]))
            begin = i
        return cuts


def start_days(dataset: WindowDataset, starts: Iterable[int] | Tensor | None) -> Tensor:
    """Checked first days, int64 on the CPU; by default of all labelled windows, or of all if there are no labels."""
    if starts is None:
        return torch.arange(dataset.num_labelled or dataset.num_windows, dtype=torch.int64, device="cpu")
    if not isinstance(starts, Tensor):
        days = list(starts)
        for day in days:
            # A mask or a fraction would be converted to unintended positions.
            if isinstance(day, bool) or not isinstance(day, Integral):
                raise TypeError(f"starts: expected integers, got {day!r}")
        starts = _indices(int(day) for day in days)
    if starts.dtype not in _INTEGERS:
        raise TypeError(f"starts: expected integers, got {starts.dtype}; convert a mask by starts.nonzero().flatten()")
    if starts.dim() != 1:
        raise DataError(f"starts: expected a vector, got {list(starts.shape)}")
    starts = starts.cpu().long()
    dataset.check_starts(starts, labelled=False)
    return starts


def _indices(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64, device="cpu")


def shuffled(count: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """A permutation of ``[0, count)`` computed on `device`, equal on all devices: the generator gives only its key."""
    key = int(torch.randint(-(2**63), 2**63 - 1, (), generator=generator, dtype=torch.int64, device="cpu"))
    # splitmix64 (Steele et al., 2014) is a bijection: all numbers differ, and the order is unique. int64 wraps around.
    x = key + torch.arange(count, dtype=torch.int64, device=device) * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ _shifted(x, shift)) * factor
    return (x ^ _shifted(x, 31)).argsort()


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
