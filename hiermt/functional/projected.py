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
    edge = []
    if project_edge is not None and graph.edge_weight is not None:
        weight = graph.csr(reference.GATV2_RULE, True, graph.edge_weight.dtype).weight
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

    (x_l, x_r, att, *edge), _ = prepare("conv_stack", x_l, [x_r, att, *edge], expected, graph, "reference")
    edges = twin.Edges(graph.csr(reference.GATV2_RULE, bool(edge), x_l.dtype).tensors)
    hidden = x_l.size(-1)

    def attend(part: Tensor) -> Tensor:
        return twin.attend(part[:, :hidden], part[:, hidden:], edges, edge[0] if edge else None, att)

    by_pieces = without_autocast(twin.by_pieces)
    return by_pieces(torch.cat([x_l, x_r], dim=-1), edges, hidden, attend)  # type: ignore[no-any-return]


def gcn_projected(x: Tensor, graph: Graph) -> Tensor:
    """GCN sum over projected nodes, before the bias: ``[N, T, H] -> [N, T, H]``."""
    (x,), _ = prepare("conv_stack", x, [], lambda: [Expected("x", ("N", "T", "H"))], graph, "reference")
    csr = graph.csr(reference.GCN_RULE, True, x.dtype)
    edges, norm = twin.Edges(csr.tensors), csr.weight
    assert norm is not None
    by_pieces = without_autocast(twin.by_pieces)
    return by_pieces(x, edges, x.size(-1), lambda part: twin.propagate(part, edges, norm))  # type: ignore[no-any-return]


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation behind a convolution, by its name."""
    return twin.activate(x, ACTIVATIONS[activation])
