"""``hiermt::gcn_conv`` against its twin, PyG and float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hiermt import Graph
from hiermt.native import extension
from hiermt.testing import assert_close

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from support.single_convolutions import ops, reference


class Case(NamedTuple):
    x: Tensor
    csr: tuple[Tensor, ...]
    norm: Tensor
    params: list[Tensor]

    def leaves(self) -> list[Tensor]:
        return [self.x, self.norm, *self.params]

    def to(self, dtype: torch.dtype) -> Case:
        def copy(value: Tensor) -> Tensor:
            return value.detach().to(dtype).requires_grad_()

        return Case(copy(self.x), self.csr, copy(self.norm), [copy(param) for param in self.params])


def some_edges(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    """Loops, duplicates and isolated nodes as they come."""
    return torch.randint(nodes, (2, edges)), torch.rand(edges) + 0.1


def make(
    edges: tuple[Tensor, Tensor],
    nodes: int,
    copies: int,
    t: int,
    f: int,
    h: int,
    dtype: torch.dtype = torch.float32,
) -> Case:
    graph = Graph(edges[0], edges[1], num_nodes=nodes)
    entries = graph.csr(reference.GCN_RULE, True, torch.float64)
    params = [torch.randn(h, f) / f**0.5, torch.randn(h)]
    return Case(torch.randn(copies * nodes, t, f), entries.tensors, entries.weight, params).to(dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("where", ["x", "norm", "weight"])
def test_nan_and_infinity_reach_what_the_twins_reach(where: str, value: float) -> None:
    case = make(some_edges(7, 20), 7, 2, 3, 4, 5)
    target = {"x": case.x, "norm": case.norm, "weight": case.params[0]}[where]
    with torch.no_grad():
        target[(1,) * target.dim()] = value
    out = ops.gcn_conv(*case, reference.SIGMOID)
    assert_close(out, reference.gcn_conv(*case, reference.SIGMOID))


def test_arguments_are_checked_before_anything_is_read() -> None:
    case = make(some_edges(5, 12), 5, 2, 3, 2, 4)
    good = [case.x.detach(), list(case.csr), case.norm.detach(), [p.detach() for p in case.params], 0]

    def refuses(position: int, value: object, message: str) -> None:
        with pytest.raises(RuntimeError, match=message):
            ops.gcn_conv(*good[:position], value, *good[position + 1 :])

    refuses(0, torch.randn(11, 3, 2), "x: expected a multiple of the graph's 5 nodes")
    refuses(1, list(case.csr[:5]), "csr: expected 6 tensors, got 5")
    refuses(2, torch.randn(3), "edge_weight: expected a shape")
    refuses(3, [torch.randn(4, 3), torch.randn(4)], r"lin.weight: expected a shape \[H, 2\]")
    refuses(4, 7, "activation: expected 0 .none.")
