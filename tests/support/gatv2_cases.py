"""What the tests of ``hiermt::gatv2_conv`` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hiermt import reference
from hiermt.graph import Graph
from hiermt.testing import stock_graph


class Case(NamedTuple):
    x: Tensor
    csr: list[Tensor]
    edge_weight: Tensor | None
    params: list[Tensor]
    lin_edge: Tensor | None

    def leaves(self) -> list[Tensor]:
        optional = [tensor for tensor in (self.edge_weight, self.lin_edge) if tensor is not None]
        return [self.x, *self.params, *optional]

    def to(self, dtype: torch.dtype) -> Case:
        def copy(value: Tensor | None) -> Any:
            return None if value is None else value.detach().to(dtype).requires_grad_()

        params = [copy(param) for param in self.params]
        return Case(copy(self.x), self.csr, copy(self.edge_weight), params, copy(self.lin_edge))


def make(
    copies: int, t: int, f: int, h: int, dtype: torch.dtype = torch.float32, edge: bool = True, nodes: int = 20
) -> Case:
    edge_index, weight = stock_graph(nodes, nodes * 4, isolated=2)
    csr = Graph(edge_index, weight, nodes).csr(reference.GATV2_RULE, edge, torch.float64)
    scale = 1 / max(f, 1) ** 0.5
    shapes = [(h, f), (h,), (h, f), (h,), (1, 1, h), (h,)]
    params = [torch.randn(shape) * (scale if len(shape) == 2 else 0.4) for shape in shapes]
    lin_edge = torch.randn(h, 1) * 0.5 if edge else None
    return Case(torch.randn(copies * nodes, t, f), csr.tensors, csr.weight, params, lin_edge).to(dtype)


def gradients(run: Callable[..., Tensor], case: Case, activation: int) -> tuple[Tensor, list[Tensor]]:
    """Output and the gradient of everything, under a cotangent that is the same for every implementation."""
    out = run(*case, activation)
    cotangent = torch.cos(torch.arange(out.numel())).bfloat16().reshape(out.shape).to(out.dtype)
    return out, list(torch.autograd.grad(out, case.leaves(), cotangent))
