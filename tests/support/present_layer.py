"""A layer of stocks that come and go, its leaves, and what PyG makes of it day by day."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import hiermt
from hiermt import functional
from hiermt.native import extension
from hiermt.testing import batched
from support import present as oracle

STOCKS, STEPS, FEATURES, HIDDEN = 11, 7, 3, 9
BACKENDS = ("native", "reference") if extension.why_not_native("cpu") is None else ("reference",)


class Layer(NamedTuple):
    """The leaves of a layer and its mask; x is NaN where a stock is absent."""

    x: Tensor
    h0: Tensor
    edge_index: Tensor
    weight: Tensor | None
    convs: list[Tensor]
    gates: list[Tensor]
    present: Tensor
    options: dict[str, Any]

    @property
    def graph(self) -> hiermt.Graph:
        return hiermt.Graph(self.edge_index, self.weight, STOCKS)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, self.h0, *self.convs, *self.gates, *([] if self.weight is None else [self.weight])]

    def run(self, backend: str, **options: Any) -> Tensor:
        given = {"h0": self.h0, "present": self.present, **options}
        return functional.tgcn_layer(
            self.x, self.graph, self.convs, self.gates, **self.options, **given, backend=backend
        )

    def expected(self, x: Tensor | None = None, present: Tensor | None = None, h0: Tensor | None = None) -> Tensor:
        x = self.x if x is None else x
        edges = batched(self.edge_index, self.weight, STOCKS, x.size(0) // STOCKS)
        states, _ = oracle.layers(
            x,
            edges,
            self.present if present is None else present,
            [(self.convs, self.gates)],
            [self.h0 if h0 is None else h0],
            conv_layers=self.options["conv_layers"],
            between=self.options["conv_activation"] == "between",
        )
        return states

    def with_leaves(self, dtype: torch.dtype) -> Layer:
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_()

        weight = None if self.weight is None else leaf(self.weight)
        lists = ([leaf(one) for one in many] for many in (self.convs, self.gates))
        return Layer(leaf(self.x), leaf(self.h0), self.edge_index, weight, *lists, self.present, self.options)


def layer(
    kind: str, conv_layers: int = 2, between: bool = True, copies: int = 1, mask: str = "random", hidden: int = HIDDEN
) -> Layer:
    """Duplicates, loops, and for a GATv2 weights that are negative or zero; float64."""
    torch.manual_seed(len(mask) + conv_layers)
    edge_index = torch.randint(0, STOCKS, (2, 40))
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    loops = torch.tensor([[2, 5], [2, 5]])
    edge_index = torch.cat([edge_index, edge_index[:, :3], loops], dim=1)
    weight = torch.rand(edge_index.size(1)) + 0.1
    if kind == "edge":
        weight[::3] *= -1
        weight[1] = 0
    convs: list[Tensor] = []
    for k in range(conv_layers):
        inputs = hidden if k else FEATURES
        if kind == "gcn":
            convs += [torch.randn(hidden, inputs), torch.randn(hidden)]
            continue
        convs += [torch.randn(hidden, inputs), torch.randn(hidden), torch.randn(hidden, inputs), torch.randn(hidden)]
        convs += [torch.randn(1, 1, hidden), torch.randn(hidden)]
        convs += [torch.randn(hidden, 1)] if kind == "edge" else []
    gates = [one for _ in range(3) for one in (0.3 * torch.randn(hidden, FEATURES + 2 * hidden), torch.randn(hidden))]
    nodes = copies * STOCKS
    present = oracle.masks(nodes, STEPS)[mask]
    x = torch.randn(nodes, STEPS, FEATURES).masked_fill(~present.unsqueeze(-1), torch.nan)
    x[~present] = torch.where(torch.rand(int((~present).sum()), 1) < 0.3, torch.inf, x[~present])
    options = {
        "conv_layers": conv_layers,
        "gat": kind != "gcn",
        "edge": kind == "edge",
        "conv_activation": "between" if between else "after",
    }
    given = None if kind == "bare" else weight
    found = Layer(x, torch.randn(nodes, hidden), edge_index, given, convs, gates, present, options)
    return found.with_leaves(torch.float64)


def gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(5)
    found = torch.autograd.grad(y, leaves, torch.randn(y.shape).to(y.dtype), allow_unused=True)
    return [torch.zeros_like(leaf) if one is None else one for one, leaf in zip(found, leaves, strict=True)]
