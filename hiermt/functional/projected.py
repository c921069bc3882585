"""Convolutions of nodes that a foreign module has projected, for :mod:`hiermt.nn.conv`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hiermt import reference
from hiermt.functional.arguments import Expected, prepare, size_of, without_autocast
from hiermt.functional.nothing import is_nothing
from hiermt.functional.options import ACTIVATIONS
from hiermt.graph import Graph
from hiermt.reference import convolution as twin


def gatv2_projected(
    x_l: Tensor,
    x_r: Tensor,
    graph: Graph,
    project_edge: Callable[[Tensor], Tensor] | None,
    att: Tensor,
    present: Tensor | None = None,
) -> Tensor:
    """GATv2 attention and sum, before the bias.

    Args:
        x_l, x_r (Tensor): nodes as sources, which are also the messages, and as targets.
        graph (Graph): edges and weights.
        project_edge (callable, optional): from the weights of the entries ``[E, 1]`` to the edge term ``[E, H]``.
        att (Tensor): attention vector.
        present (Tensor, optional): which nodes are there; the others are no sources. (default: ``None``, all)

    Shapes:
        - **x_l**, **x_r:** ``[N, T, H]``; att ``[1, 1, H]``; **present:** ``[N, T]`` bool
        - **returns:** ``[N, T, H]``
    """
    (x_l, x_r, att, *edge), edges = _attention_inputs(x_l, x_r, graph, project_edge, att, False, present)
    hidden = x_l.size(-1)
    if present is not None:
        x_l = torch.where(present.unsqueeze(-1), x_l, 0)

    def attend(part: Tensor, there: Tensor | None) -> Tensor:
        term = _edge_term(edge, project_edge, edges, there)
        return twin.attend(part[:, :hidden], part[:, hidden:], edges, term, att, there)

    by_pieces = without_autocast(twin.by_pieces)
    return by_pieces(torch.cat([x_l, x_r], dim=-1), edges, hidden, attend, present)  # type: ignore[no-any-return]


def gatv2_attention(
    x_l: Tensor,
    x_r: Tensor,
    graph: Graph,
    project_edge: Callable[[Tensor], Tensor] | None,
    att: Tensor,
    present: Tensor | None = None,
) -> Tensor:
    """The attention of :func:`gatv2_projected` for each edge, in the order of :func:`attention_edges`.

    It is zero on an edge from or to a node that is not there.

    Shapes:
        - **x_l**, **x_r:** ``[N, T, H]`` with ``N`` nodes in ``B`` copies of the graph; **present:** ``[N, T]`` bool
        - **returns:** ``[B, E, T]``
    """
    (x_l, x_r, att, *edge), edges = _attention_inputs(x_l, x_r, graph, project_edge, att, True, present)
    nodes, steps, hidden = graph.num_nodes, x_l.size(1), x_l.size(2)
    copies = x_l.size(0) // max(nodes, 1)
    order, _ = _pyg_order(graph)
    attention = without_autocast(twin.attention)
    # [N, T, H] -> [B, S, H, T], one copy at a time: the scores of an edge are as large as its messages.
    sources, targets = (x.reshape(copies, nodes, steps, hidden).transpose(2, 3) for x in (x_l, x_r))
    masks = [None] * len(sources) if present is None else present.reshape(copies, nodes, steps)
    found = []
    for source, target, there in zip(sources, targets, masks, strict=True):
        alpha, _ = attention(source, target, edges, _edge_term(edge, project_edge, edges, there), att, there)
        found.append(alpha.index_select(0, order))
    return torch.stack(found) if found else x_l.new_zeros(0, order.numel(), steps)


def _edge_term(
    edge: list[Tensor],
    project_edge: Callable[[Tensor], Tensor] | None,
    edges: twin.Edges,
    there: Tensor | None,
) -> Tensor | None:
    """The edge term ``[E, H]``; with a mask ``[S, M]`` it is ``[E, H, M]``, as the weight of a loop is of its step."""
    if not edge:
        return None
    if there is None:
        return edge[0]
    assert project_edge is not None
    weight = twin.loops_of_the_step(edges, edge[0], there)  # [E, M]
    return project_edge(weight.unsqueeze(-1)).transpose(1, 2)


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
    present: Tensor | None,
) -> tuple[list[Tensor], twin.Edges]:
    """Both projections, the attention vector and, if there are edge weights, their term; the entries of the CSR.

    With a mask the weights stand in place of their term, which is of each step.
    """
    edge = []
    if project_edge is not None and graph.edge_weight is not None:
        weight = graph.csr(reference.GATV2_RULE, True, graph.edge_weight.dtype, whole=whole).weight
        assert weight is not None
        weight = weight.to(att.dtype)
        edge = [project_edge(weight.unsqueeze(-1)) if present is None else weight]

    def expected() -> list[Expected]:
        hidden = size_of(x_l, 2, "H")
        found = [
            Expected("x_l", ("N", "T", "H")),
            Expected("x_r", tuple(x_l.shape)),
            Expected("att", (hidden,), flat=True),
            Expected("edge term", ("E", hidden) if present is None else ("E",)),
        ]
        return found[: 3 + len(edge)]

    tensors, _ = prepare("conv_stack", x_l, [x_r, att, *edge], expected, graph, "reference")
    csr = graph.csr(reference.GATV2_RULE, bool(edge), tensors[0].dtype, whole=whole)
    return tensors, twin.Edges(csr.tensors)


def gcn_projected(x: Tensor, graph: Graph, loop_weight: float = 1.0) -> Tensor:
    """GCN sum over projected nodes, before the bias: ``[N, T, H] -> [N, T, H]``."""
    (x,), _ = prepare("conv_stack", x, [], lambda: [Expected("x", ("N", "T", "H"))], graph, "reference")
    csr = graph.csr(reference.GCN_RULE, True, x.dtype, loop_weight=loop_weight, normalized=not is_nothing(x))
    edges, norm = twin.Edges(csr.tensors), csr.weight
    assert norm is not None
    by_pieces = without_autocast(twin.by_pieces)
    return by_pieces(x, edges, x.size(-1), lambda part, _: twin.propagate(part, edges, norm))  # type: ignore[no-any-return]


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation behind a convolution, by its name."""
    return twin.activate(x, ACTIVATIONS[activation])
