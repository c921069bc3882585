"""Attention of a model on the edges of each day, to explain its decisions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hiermt.functional.projected import attention_edges
from hiermt.graph import Graph
from hiermt.nn.absence import Day
from hiermt.nn.cell import TGCNCell, cell_parameters
from hiermt.nn.conv import GAT


def attention_weights(
    cells: list[Any], x: Tensor, graph: Graph, lead: tuple[int, ...], present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The edges that the convolutions read, and the attention of each convolution of each cell on them.

    Args:
        cells (list of Module): cells of the model.
        x (Tensor): input of the first, ``[N, T, F]``.
        graph (Graph): edges and weights.
        lead (tuple of int): ``(N,)``, or ``(B, N)`` of a batch on one graph.
        present (Tensor, optional): which nodes are there. (default: ``None``, all)

    Shapes:
        - **present:** ``[N, T]`` bool
        - **returns:** ``[2, E]`` and ``[layers_nb, conv_layers, E, T]``, or ``[layers_nb, conv_layers, B, E, T]``

    Raises:
        TypeError: a cell has no attention.
    """
    found = []
    for i, cell in enumerate(cells):
        stack = getattr(cell, "gcn", None)
        if not isinstance(stack, GAT):
            kind = type(cell if stack is None else stack).__name__
            raise TypeError(f"attention_weights: cell {i} has a {kind}, expected a GAT, as use_gat=True makes one")
        found.append(torch.stack(stack.attend(x, graph, present)))
        if i < len(cells) - 1:
            x = _states(cell, x, graph, present)
    alpha = torch.stack(found)
    return attention_edges(graph), alpha.reshape(*alpha.shape[:2], *lead[:-1], *alpha.shape[3:])


def _states(cell: TGCNCell, x: Tensor, graph: Graph, present: Tensor | None) -> Tensor:
    """The states of one cell after each step."""
    params = cell_parameters([cell])
    if params is not None:
        return cell.run_sequence(x, graph, params[0], sequence=True, present=present)
    edges = graph.edges(x.size(0) // max(graph.num_nodes, 1))
    h, states = x.new_zeros(x.size(0), cell.hidden_size), []
    for t, step in enumerate(x.unbind(1)):
        h = cell(step, *edges, h) if present is None else Day(edges, present[:, t]).run(cell, step, h)
        states.append(h)
    return torch.stack(states, dim=1) if states else h.unsqueeze(1)[:, :0]
