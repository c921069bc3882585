"""The oracle of stocks that come and go: PyG's convolutions on the subgraph of those that are there, day by day.

It shares no line with the package: the cell's equations (arXiv 1811.05320, eqs. 2 to 6) in plain PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

Edges = tuple[Tensor, Tensor | None]
GCN_NAMES = ["lin.weight", "bias"]
GAT_NAMES = ["lin_l.weight", "lin_l.bias", "lin_r.weight", "lin_r.bias", "att", "bias", "lin_edge.weight"]


def pyg_conv(x: Tensor, edges: Edges, params: Sequence[Tensor]) -> Tensor:
    """PyG's convolution with our parameters: 2 of a GCN, 6 of a GATv2, 7 of one with an edge term."""
    module, shapes = _pyg_module(len(params), *params[0].shape)
    names = GCN_NAMES if len(params) == 2 else GAT_NAMES
    given = {name: one.reshape(shapes[name]) for name, one in zip(names, params, strict=False)}
    return torch.func.functional_call(module, given, (x, *edges))  # type: ignore[no-any-return]


@functools.cache
def _pyg_module(count: int, hidden: int, channels: int) -> tuple[torch.nn.Module, dict[str, torch.Size]]:
    """A convolution that is called with parameters of others, and their shapes. To make one takes as long as a call."""
    pyg = pytest.importorskip("torch_geometric.nn")
    if count == 2:
        module = pyg.GCNConv(channels, hidden)
    else:
        module = pyg.GATv2Conv(channels, hidden, edge_dim=1 if count == 7 else None)
    return module, {name: one.shape for name, one in module.named_parameters()}


def subgraph(edges: Edges, nodes: Tensor, number: int) -> Edges:
    utils = pytest.importorskip("torch_geometric.utils")
    return utils.subgraph(nodes, edges[0], edges[1], relabel_nodes=True, num_nodes=number)  # type: ignore[no-any-return]


def stack_of_day(x: Tensor, edges: Edges, params: Sequence[Tensor], conv_layers: int, between: bool) -> Tensor:
    """The convolutions of a layer, before the sigmoid."""
    count = len(params) // conv_layers
    for k in range(conv_layers):
        x = pyg_conv(x, edges, params[k * count : (k + 1) * count])
        if k < conv_layers - 1 or not between:
            x = F.leaky_relu(x, 0.01)
    return x


def cell(x: Tensor, g: Tensor, h: Tensor, gates: Sequence[Tensor]) -> Tensor:
    u = torch.sigmoid(F.linear(torch.cat([x, g, h], -1), *gates[:2]))
    r = torch.sigmoid(F.linear(torch.cat([x, g, h], -1), *gates[2:4]))
    c = torch.tanh(F.linear(torch.cat([x, g, r * h], -1), *gates[4:]))
    return u * h + (1 - u) * c


def layers(
    x: Tensor,
    edges: Edges,
    present: Tensor,
    params: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    h0: Sequence[Tensor | None] | None = None,
    *,
    conv_layers: int = 2,
    between: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Cells over ``[N, T, F]`` with a mask ``[N, T]``: the states of the last after each day, and all last states.

    `params` holds the parameters of convolutions and gates of each cell.
    """
    nodes = x.size(0)
    states: list[Any] = list(h0 or [None] * len(params))
    for i, (_, gates) in enumerate(params):
        states[i] = x.new_zeros(nodes, gates[1].numel()) if states[i] is None else states[i]
    days = []
    for t in range(x.size(1)):
        there = present[:, t].nonzero()[:, 0]
        if len(there):
            step, graph = x[there, t], subgraph(edges, there, nodes)
            for i, (convs, gates) in enumerate(params):
                g = torch.sigmoid(stack_of_day(step, graph, convs, conv_layers, between))
                step = cell(step, g, states[i][there], gates)
                states[i] = states[i].index_copy(0, there, step)
        days.append(states[-1])
    return torch.stack(days, 1) if days else x.new_zeros(nodes, 0, states[-1].size(1)), states


def masks(nodes: int, steps: int, seed: int = 0) -> dict[str, Tensor]:
    """Masks ``[N, T]`` of several kinds; the first node is never there in most."""
    generator = torch.Generator().manual_seed(seed)
    found = {"random": torch.rand(nodes, steps, generator=generator) < 0.6}
    found["random"][0] = False
    found["listed late"] = torch.arange(steps) >= torch.randint(0, steps + 2, (nodes, 1), generator=generator)
    found["a day of nobody"] = torch.rand(nodes, steps, generator=generator) < 0.8
    found["a day of nobody"][:, steps // 2] = False
    found["nobody"] = torch.zeros(nodes, steps, dtype=torch.bool)
    found["one"] = found["nobody"].clone()
    found["one"][nodes // 2] = True
    return found
