"""A graph has the same bits alone and beside others.

The CUDA kernels give a small graph more threads a node than a large one or a batch: neither may change a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hiermt import TGCN
from hiermt.testing import stock_graph
from simt.cases import needs_harness
from simt.harness import Simt

pytestmark = needs_harness

NODES, MOST = 40, 420


class Alone(NamedTuple):
    """A model, its input on a graph of 40 nodes, and the rest of a larger graph that it is a part of."""

    model: TGCN
    x: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None
    present: Tensor | None

    def run(self, nodes: int) -> Tensor:
        """States of the first `nodes` of the nodes, a whole number of graphs."""
        inside = (self.edge_index < nodes).all(0)
        weights = None if self.edge_weight is None else self.edge_weight[inside]
        present = None if self.present is None else self.present[:nodes]
        with torch.no_grad(), Simt():
            return self.model(self.x[:nodes], self.edge_index[:, inside], weights, present=present)

    def check(self, finite: bool = True) -> None:
        alone, beside = self.run(NODES), self.run(MOST)[:NODES]
        assert torch.equal(alone.isnan(), beside.isnan())
        assert torch.equal(alone.nan_to_num(7), beside.nan_to_num(7))
        assert alone.isfinite().all() or not finite


def problem(
    hidden: int,
    dtype: torch.dtype = torch.float32,
    steps: int = 2,
    channels: int = 5,
    *,
    gat: bool = True,
    edges: bool = True,
    absent: bool = False,
    conv_layers: int = 2,
) -> Alone:
    generator = torch.Generator().manual_seed(hidden)
    one, weight = stock_graph(NODES)
    first, second = stock_graph(MOST - NODES)
    edge_index = torch.cat([one, first + NODES], 1)
    x = torch.randn(MOST, steps, channels, generator=generator).to(dtype)
    torch.manual_seed(hidden)
    options = {"edge_dim": 1 if edges else None} if gat else {}
    model = TGCN(channels, 4, hidden, use_gat=gat, conv_layers=conv_layers, backend="native", **options).to(dtype)
    return Alone(
        model,
        x,
        edge_index,
        torch.cat([weight, second]).to(dtype) if edges else None,
        torch.rand(MOST, steps, generator=generator) < 0.8 if absent else None,
    )


@pytest.mark.parametrize("absent", [False, True], ids=["all there", "absent"])
@pytest.mark.parametrize("edges", [True, False], ids=["weights", "no weights"])
@pytest.mark.parametrize("gat", [True, False], ids=["GATv2", "GCN"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [8, 16])
def test_the_same_bits(hidden: int, dtype: torch.dtype, gat: bool, edges: bool, absent: bool) -> None:
    problem(hidden, dtype, gat=gat, edges=edges, absent=absent).check()


@pytest.mark.parametrize("conv_layers", [1, 3])
@pytest.mark.parametrize("hidden", [8, 16])
def test_of_other_stacks(hidden: int, conv_layers: int) -> None:
    problem(hidden, steps=1, channels=19, conv_layers=conv_layers).check()


@pytest.mark.parametrize("factor", range(40, 160, 10))
def test_near_where_weights_overflow(factor: int) -> None:
    """Weights are relative to that of a loop; beyond 1e19 a row is computed in another way."""
    alone = problem(16, steps=4)
    # Sources in pairs of nearly equal scores: one alone would get all of the attention, whatever it was computed with.
    alone.x[1::2] = 1.001 * alone.x[::2]
    for conv in alone.model.cells[0].gcn.convs:
        conv.att.data.mul_(factor)
    alone.check()


def replaced(value: float) -> Callable[[Alone], None]:
    def change(alone: Alone) -> None:
        alone.x[3, 0, 1] = value
        alone.x[17, 1] = value

    return change


def large(alone: Alone) -> None:
    """Scores whose quotients overflow."""
    for conv in alone.model.cells[0].gcn.convs:
        conv.lin_l.weight.data.mul_(3e4)


def infinite(alone: Alone) -> None:
    alone.model.cells[0].gcn.convs[0].lin_l.bias.data[2] = math.inf


def not_a_number(alone: Alone) -> None:
    assert alone.edge_weight is not None
    alone.edge_weight[5] = math.nan


@pytest.mark.parametrize("absent", [False, True], ids=["all there", "absent"])
@pytest.mark.parametrize("hidden", [8, 16])
@pytest.mark.parametrize(
    "change", [replaced(math.inf), replaced(-math.inf), replaced(math.nan), large, infinite, not_a_number]
)
@pytest.mark.hostile("special-numbers")
def test_of_values_that_are_not_finite(change: Callable[[Alone], None], hidden: int, absent: bool) -> None:
    alone = problem(hidden, absent=absent)
    change(alone)
    alone.check(finite=False)
