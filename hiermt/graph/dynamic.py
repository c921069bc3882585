"""Graphs that change over time: one edge set for each block of days."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import torch

from hiermt._arguments import check_integer
from hiermt.graph.graph import Graph


class DynamicGraph:
    r"""One :class:`hiermt.Graph` for each block of days, such as correlations that are estimated repeatedly.

    A window uses the graph of its last day, the day of its decision.

    Args:
        blocks (sequence of (int, Graph)): first day of each block, in order, and its graph. All graphs have the same
            nodes and live on one device.

    Raises:
        ValueError: `blocks` is empty, the days do not increase, or the graphs differ in nodes or device.
    """

    def __init__(self, blocks: Sequence[tuple[int, Graph]]) -> None:
        if not blocks:
            raise ValueError("blocks: expected at least one (first_day, Graph), got none")
        self.days = [check_integer("blocks: a first day", day, -(2**62)) for day, _ in blocks]
        self.graphs = [graph for _, graph in blocks]
        for earlier, later in zip(self.days, self.days[1:], strict=False):
            if later <= earlier:
                raise ValueError(f"blocks: expected increasing first days, got {later} after {earlier}")
        for graph in self.graphs:
            if not isinstance(graph, Graph):
                raise TypeError(f"blocks: expected a hiermt.Graph, got {type(graph).__name__}")
            if graph.num_nodes != self.num_nodes:
                raise ValueError(f"blocks: expected {self.num_nodes} nodes in every graph, got {graph.num_nodes}")
            if graph.device != self.device:
                raise ValueError(f"blocks: one graph is on {graph.device}, another on {self.device}; move one")

    @property
    def num_nodes(self) -> int:
        """Nodes of every graph."""
        return self.graphs[0].num_nodes

    @property
    def device(self) -> torch.device:
        """Device of the edges."""
        return self.graphs[0].device

    def __len__(self) -> int:
        return len(self.graphs)

    def to(self, device: torch.device | str) -> DynamicGraph:
        """The same graphs on another device."""
        return DynamicGraph([(day, graph.to(device)) for day, graph in zip(self.days, self.graphs, strict=True)])

    def block_of(self, day: int) -> int:
        """Index of the block that contains a day.

        Raises:
            IndexError: the day lies before the first block.
        """
        block = bisect_right(self.days, day) - 1
        if block < 0:
            raise IndexError(f"day {day} lies before the first graph, which starts on day {self.days[0]}")
        return block

    def at(self, day: int) -> Graph:
        """The graph of a day."""
        return self.graphs[self.block_of(day)]

    def runs(self, days: Sequence[int]) -> Iterator[tuple[Graph, range]]:
        """Splits increasing days into runs of one graph: the graph, and the positions in `days`."""
        first = 0
        blocks = [self.block_of(day) for day in days]
        for i in range(1, len(blocks) + 1):
            if i == len(blocks) or blocks[i] != blocks[first]:
                yield self.graphs[blocks[first]], range(first, i)
                first = i

    def __repr__(self) -> str:
        return f"DynamicGraph(blocks={len(self)}, num_nodes={self.num_nodes}, device='{self.device}')"
