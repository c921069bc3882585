"""Convolutions of nodes that a foreign module has projected, for :mod:`hiermt.nn.conv`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hiermt import reference
from hiermt.functional.arguments import Expected, prepare, size_of, without_autocast
from hiermt.functional.options import ACTIVATIONS
from hiermt.graph import Graph
from hiermt.reference import convolution as twin


def gatv2_projected(
    x_l: Tensor, x_r: Tensor, graph: Graph, project_edge: Callable[[Tensor], Tensor] | None, att: Tensor
) -> Tensor:
    """GATv2 attention and sum, before the bias.

    Args:
        x_l, x_r (Tensor): nodes as sources, which are also the messages, and as targets.
        graph (Graph): edges and weights.
        project_edge (callable, optional): from the weights of the entries ``[E, 1]`` to the edge term ``[E, H]``.
        att (Tensor): attention vector.

    Shapes:
        - **x_l**, **x_r:** ``[N, T, H]``; att ``[1, 1, H]``
        - **returns:** ``[N, T, H]``
    """
    (x_l, x_r, att, *edge), edges = _attention_inputs(x_l, x_r, graph, project_edge, att, whole=False)
    hidden = x_l.size(-1)

    def attend(part: Tensor, _: Tensor | None) -> Tensor:
        return twin.attend(part[:, :hidden], part[:, hidden:], edges, edge[0] if edge else None, att)

    by_pieces = without_autocast(twin.by_pieces)
    return by_pieces(torch.cat([x_l, x_r], dim=-1), edges, hidden, attend)  # type: ignore[no-any-return]


def gatv2_attention(
    x_l: Tensor, x_r: Tensor, graph: Graph, project_edge: Callable[[Tensor], Tensor] | None, att: Tensor
) -> Tensor:
    """The attention of :func:`gatv2_projected` for each edge, in the order of :func:`attention_edges`.

    Shapes:
        - **x_l**, **x_r:** ``[N, T, H]`` with ``N`` nodes in ``B`` copies of the graph
        - **returns:** ``[B, E, T]``
    """
    (x_l, x_r, att, *edge), edges = _attention_inputs(x_l, x_r, graph, project_edge, att, whole=True)
    nodes, steps, hidden = max(graph.num_nodes, 1), x_l.size(1), x_l.size(2)
    order, _ = _pyg_order(graph)
    term = edge[0] if edge else None
    attention = without_autocast(twin.attention)
    # [N, T, H] -> [B, S, H, T], one copy at a time: the scores of an edge are as large as its messages.
    pairs = zip(*(x.reshape(-1, nodes, steps, hidden).transpose(2, 3) for x in (x_l, x_r)), strict=True)
    found = [attention(source, target, edges, term, att)[0].index_select(0, order) for source, target in pairs]
    return torch.stack(found) if found else x_l.new_zeros(0, order.numel(), steps)


def attention_edges(graph: Graph) -> Tensor:
    """The edges that a GATv2 reads, ``[2, E]`` as in PyG: those of `graph` without loops, then a loop of each node."""
    _, edge_index = _pyg_order(graph)
    return edge_index


def _pyg_order(graph: Graph) -> tuple[Tensor, Tensor]:
    """The entries of the CSR in PyG's order, and their sources and targets."""
    csr = graph.csr(reference.GATV2_RULE, False, torch.float32, whole=True)
    row = twin.entry_rows(csr.rowptr, csr.col.numel())
    order = torch.where(csr.e_id < 0, graph.num_edges + row, csr.e_id).argsort()
    return order, torch.stack([csr.col.long(), row])[:, order]


def _attention_inputs(
    x_l: Tensor,
    x_r: Tensor,
    graph: Graph,
    project_edge: Callable[[Tensor], Tensor] | None,
    att: Tensor,
    whole: bool,
) -> tuple[list[Tensor], twin.Edges]:
    """Both projections, the attention vector and, if there are edge weights, their term; the entries of the CSR."""
    edge = []
    if project_edge is not None and graph.edge_weight is not None:
        weight = graph.csr(reference.GATV2_RULE, True, graph.edge_weight.dtype, whole=whole).weight
        assert weight is not None
        edge = [project_edge(weight.unsqueeze(-1).to(att.dtype))]

    def expected() -> list[Expected]:
        hidden = size_of(x_l, 2, "H")
        found = [
            Expected("x_l", ("N", "T", "H")),
            Expected("x_r", tuple(x_l.shape)),
            Expected("att", (hidden,), flat=True),
            Expected("edge term", ("E", hidden)),
        ]
        return found[: 3 + len(edge)]

    tensors, _ = prepare("conv_stack", x_l, [x_r, att, *edge], expected, graph, "reference")
    csr = graph.csr(reference.GATV2_RULE, bool(edge), tensors[0].dtype, whole=whole)
    return tensors, twin.Edges(csr.tensors)


def gcn_projected(x: Tensor, graph: Graph, loop_weight: float = 1.0) -> Tensor:
    """GCN sum over projected nodes, before the bias: ``[N, T, H] -> [N, T, H]``."""
    (x,), _ = prepare("conv_stack", x, [], lambda: [Expected("x", ("N", "T", "H"))], graph, "reference")
    csr = graph.csr(reference.GCN_RULE, True, x.dtype, loop_weight=loop_weight)
    edges, norm = twin.Edges(csr.tensors), csr.weight
    assert norm is not None
    by_pieces = without_autocast(twin.by_pieces)
    return by_pieces(x, edges, x.size(-1), lambda part, _: twin.propagate(part, edges, norm))  # type: ignore[no-any-return]


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation behind a convolution, by its name."""
    return twin.activate(x, ACTIVATIONS[activation])
