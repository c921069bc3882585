"""Graphs that break things, made by hypothesis."""

from __future__ import annotations

import torch
from torch import Tensor

from support.properties import st


@st.composite
def small_graphs(draw: st.DrawFn) -> tuple[int, Tensor, Tensor]:
    """0 to 8 nodes; loops, duplicates and isolated nodes as they come; weights in (0, 1]."""
    num_nodes = draw(st.integers(0, 8))
    if num_nodes == 0:
        return 0, torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, dtype=torch.float64)
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node, st.floats(0.01, 1.0)), max_size=20))
    edge_index = torch.tensor([[s for s, _, _ in edges], [t for _, t, _ in edges]], dtype=torch.long).reshape(2, -1)
    return num_nodes, edge_index, torch.tensor([w for _, _, w in edges], dtype=torch.float64)
