"""Graphs of a case: loops, duplicates, isolated nodes, equal parts, hubs, none of them."""

from __future__ import annotations

import torch
from torch import Tensor

from fuzz.case import MODELS, Case
from hiermt.testing import batched


def edges_of(case: Case, block: int = 0) -> tuple[Tensor, Tensor | None]:
    """``edge_index`` and the weights in float64, rounded to bfloat16 so that every dtype reads the same numbers.

    Args:
        block (int): which of the graphs of a history. (default: ``0``)
    """
    generator = torch.Generator().manual_seed(case.seed + 7919 * block)
    edge_index = _index(case, generator)
    if case.weights == "none":
        weight = None
    else:
        weight = torch.rand(edge_index.size(1), generator=generator, dtype=torch.float64) * 0.9 + 0.1
        if case.weights == "signed":
            weight = weight * (torch.randint(2, weight.shape, generator=generator) * 2 - 1)
        elif case.weights == "zeros":
            weight = weight * torch.randint(2, weight.shape, generator=generator)
        elif case.weights == "tiny":
            weight = weight * 1e-4
        weight = weight.bfloat16().double()
    return edge_index.int() if case.narrow else edge_index, weight


def _index(case: Case, generator: torch.Generator) -> Tensor:
    nodes, edges = case.nodes, case.edges

    def some(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, max(high, low + 1), shape, generator=generator)

    ends = some(0, nodes, 2, edges)
    if case.graph == "stock" and edges:  # both directions, no loops
        half = ends[:, ends[0] != ends[1]]
        return torch.cat([half, half.flip(0)], dim=1)
    if case.graph == "loops" and edges:  # also several of one node
        loops = some(0, nodes, edges // 2 + 2)
        ends = torch.cat([ends, torch.stack([loops, loops])], dim=1)
        return ends[:, torch.randperm(ends.size(1), generator=generator)]
    if case.graph == "duplicates" and edges:
        return ends[:, some(0, max(edges // 3, 1), edges)]
    if case.graph == "isolated":
        return some(0, max(nodes // 3, 1), 2, edges)
    if case.graph in ("hub in", "hub"):
        ends[1, : edges if case.graph == "hub in" else edges // 2] = nodes // 2
    if case.graph in ("hub out", "hub"):
        ends[0, 0 if case.graph == "hub out" else edges // 2 :] = nodes // 2
    if case.graph == "equal parts" and nodes > 2:
        parts = 3 if nodes % 3 == 0 else 2 if nodes % 2 == 0 else nodes
        size = nodes // parts
        return batched(some(0, size, 2, max(edges // parts, 1)), None, size, parts)[0]
    return ends


def counted_once(case: Case, edge_index: Tensor, gradient: Tensor | None) -> Tensor | None:
    """PyG's gradient of the weights, for the loops that it reads: of several of a node the last one.

    PyG hands the gradient of that one to all of them. A GCN that adds no loops reads all.
    """
    if gradient is None or case.gat or (case.loop_weight == 0.0 and case.kind not in (*MODELS, "tgcn_layer")):
        return gradient
    last = {a: i for i, (a, b) in enumerate(edge_index.t().tolist()) if a == b}
    read = [a != b or last[a] == i for i, (a, b) in enumerate(edge_index.t().tolist())]
    return gradient.where(torch.tensor(read, dtype=torch.bool), 0.0)
