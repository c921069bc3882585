"""The oracle of nodes that come and go: each step on the graph of those that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Edges = tuple[Tensor, Tensor | None]


def subgraph(edges: Edges, there: Tensor) -> Edges:
    """The edges between nodes that are there, numbered as these."""
    index, weight = edges
    kept = there[index[0]] & there[index[1]]
    number = there.long().cumsum(0) - 1
    return number[index[:, kept]], None if weight is None else weight[kept]


def on_subgraphs(
    cells: Sequence[Callable[..., Tensor]], x: Tensor, edges: Edges, states: Sequence[Tensor], present: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Cells over ``x [N, T, F]``: the states of the last ``[N, T, H]``, and the last of each; absent nodes hold theirs.

    A cell is called with the features of a step, its edges, their weights and the state.
    """
    sequence, states = [], list(states)
    for t in range(x.size(1)):
        there = present[:, t]
        nodes, sub = there.nonzero().flatten(), subgraph(edges, there)
        step = x[:, t].index_select(0, nodes)
        for i, cell in enumerate(cells if len(nodes) else ()):
            step = cell(step, *sub, states[i].index_select(0, nodes))
            states[i] = states[i].index_copy(0, nodes, step)
        sequence.append(states[-1])
    return torch.stack(sequence, dim=1), states


def convolved(run: Callable[[Tensor, Edges], Tensor], x: Tensor, edges: Edges, present: Tensor, hidden: int) -> Tensor:
    """A convolution of ``[N, T, F]``, which `run` makes of one step; zeros where a node is absent."""
    steps = []
    for t in range(x.size(1)):
        there = present[:, t]
        nodes, y = there.nonzero().flatten(), x.new_zeros(x.size(0), hidden)
        if len(nodes):
            part = x[:, t : t + 1].index_select(0, nodes)
            y = y.index_copy(0, nodes, run(part, subgraph(edges, there)).squeeze(1))
        steps.append(y)
    return torch.stack(steps, dim=1)


def scanned(
    x: Tensor, g: Tensor | None, h: Tensor | None, gates: Sequence[Tensor], present: Tensor, sequence: bool
) -> list[Tensor]:
    """Equations 3 to 6 of arXiv 1811.05320 over the nodes that are there; the others hold their state."""
    linear = torch.nn.functional.linear
    inputs = x if g is None else torch.cat([x, g], -1)

    def cell(step: Tensor, _: Any, __: Any, state: Tensor) -> Tensor:
        u, r = (torch.sigmoid(linear(torch.cat([step, state], -1), *gates[i : i + 2])) for i in (0, 2))
        c = torch.tanh(linear(torch.cat([step, r * state], -1), *gates[4:]))
        return u * state + (1 - u) * c

    start = x.new_zeros(x.size(0), gates[1].numel()) if h is None else h
    none = torch.zeros(2, 0, dtype=torch.int64)
    states, (last,) = on_subgraphs([cell], inputs, (none, None), [start], present)
    return [states if sequence else last]
