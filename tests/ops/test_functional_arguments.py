"""What :mod:`hiermt.functional` and its neighbours refuse, by name and on both backends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import functional
from hiermt.native import extension

needs_native = pytest.mark.skipif(extension.why_not_native("cpu") is not None, reason="no native operators")
NODES, STEPS, FEATURES, HIDDEN = 5, 4, 3, 6
EDGES = torch.tensor([[0, 1, 2, 3, 3], [1, 2, 0, 4, 3]])
GRAPH = hiermt.Graph(EDGES, torch.rand(5), NODES)
CELL = hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN).tgcn_backbone.cells[0]


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_native)])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def parts() -> tuple[list[Tensor], list[Tensor]]:
    found = CELL.op_parameters()
    assert found is not None
    return found


@pytest.mark.parametrize("bad", [None, [1.0], 3])
def test_what_is_not_a_tensor(backend: str, bad: Any) -> None:
    convs, gates = parts()
    series = torch.randn(NODES, 8, FEATURES)
    calls = [
        lambda: CELL(bad, EDGES, None),
        lambda: CELL.gcn(bad, EDGES, None),
        lambda: functional.tgcn_layer(bad, GRAPH, convs, gates, backend=backend),
        lambda: functional.gather_windows(bad, torch.tensor([0]), 2, backend=backend),
        lambda: functional.gather_windows(series, bad, 2, backend=backend),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="expected"):
            call()


def test_backends_that_there_are_not() -> None:
    x, (convs, gates) = torch.randn(NODES, STEPS, FEATURES), parts()
    with pytest.raises(ValueError, match="backend"):
        hiermt.Graph(EDGES, None, NODES, backend="cuda")
    with pytest.raises(ValueError, match="backend"):
        functional.tgcn_layer(x, GRAPH, convs, gates, backend="gpu")


@pytest.mark.parametrize("day", [True, 1.5, "a", None])
def test_days_of_a_changing_graph(day: Any) -> None:
    with pytest.raises(TypeError, match="first day"):
        hiermt.DynamicGraph([(day, GRAPH)])


def test_sparse_edges() -> None:
    with pytest.raises(TypeError, match="sparse adjacency matrix"):
        hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN)(torch.randn(NODES, STEPS, FEATURES), EDGES.to_sparse())
