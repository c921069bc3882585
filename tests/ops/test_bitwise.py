"""A model gives the same bits on any number of threads, and for a batch and its parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import testing
from hiermt.native import extension

pytestmark = pytest.mark.skipif(bool(extension.why_not_native("cpu")), reason="needs the extension")

THREADS = (1, 2, 3, 5, 8)
STOCKS, STEPS, FEATURES, PARTS = 30, 9, 13, 7


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def model_of(hidden: int, dtype: torch.dtype, **options: Any) -> hiermt.TGCN_HierarchicalMT:
    return hiermt.TGCN_HierarchicalMT(FEATURES, hidden, backend="native", **options).to(dtype)


def results(run: Any, leaves: list[Tensor]) -> list[Tensor]:
    """Values and gradients."""
    for leaf in leaves:
        leaf.grad = None
    values = list(run())
    (sum(value.float().square().sum() for value in values)).backward()
    return [value.detach() for value in values] + [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]


def same_on_all_threads(run: Any, leaves: list[Tensor]) -> None:
    torch.set_num_threads(1)
    expected = results(run, leaves)
    for threads in THREADS:
        torch.set_num_threads(threads)
        for i, (actual, value) in enumerate(zip(results(run, leaves), expected, strict=True)):
            assert torch.equal(actual, value), f"{threads} threads, result {i}"


OPTIONS = {
    "gat": {},
    "gcn": {"use_gat": False},
    "after": {"conv_layers": 1, "edge_dim": None, "conv_activation": "after"},
    "three layers": {"layers_nb": 3},
}


def graph_of(options: dict[str, Any], dtype: torch.dtype, weight: Tensor | None = None) -> hiermt.Graph:
    edge_index, edge_weight = testing.stock_graph(STOCKS, 160)
    weighted = options.get("edge_dim", 1) is not None
    own = edge_weight.to(dtype) if weight is None else weight
    return hiermt.Graph(edge_index, own if weighted else None, STOCKS, backend="native")


@pytest.mark.hostile("determinism", "equal-parts")
def test_raw_graphs_without_equal_parts_on_any_number_of_threads() -> None:
    edge_index, edge_weight = testing.stock_graph(501, 5000, isolated=9)
    x = torch.randn(501, STEPS, FEATURES).requires_grad_()
    for options in ({}, {"use_gat": False}):
        model = model_of(16, torch.float32, **options)
        same_on_all_threads(lambda model=model: model(x, edge_index, edge_weight), [x, *model.parameters()])


@pytest.mark.hostile("determinism")
@pytest.mark.parametrize(
    ("name", "hidden", "dtype"),
    [
        ("gat", 16, torch.float32),
        ("gcn", 17, torch.bfloat16),
        ("after", 8, torch.float64),
        ("three layers", 64, torch.float32),
    ],
)
def test_a_batch_and_its_parts(name: str, hidden: int, dtype: torch.dtype) -> None:
    """Values, and the gradient of each part's own x; those of parameters are sums over the parts."""
    options = OPTIONS[name]
    model = model_of(hidden, dtype, **options)
    graph = graph_of(options, dtype)
    x = torch.randn(PARTS, STOCKS, STEPS, FEATURES).to(dtype)
    whole = results(lambda: model(batch, graph), [batch := x.clone().requires_grad_()])
    flat = x.flatten(0, 1).clone().requires_grad_()
    index, weight = testing.batched(graph.edge_index, graph.edge_weight, STOCKS, PARTS)
    union = results(lambda: model(flat, index, weight), [flat])
    for i in range(PARTS):
        own = x[i].clone().requires_grad_()
        part = results(lambda own=own: model(own, graph), [own])
        for a, b, c in zip(part, whole, union, strict=True):
            assert torch.equal(a, b[i])
            assert torch.equal(a, c.unflatten(0, (PARTS, STOCKS))[i])
    pair = results(lambda: model(both, graph), [both := x[2:4].clone().requires_grad_()])
    assert all(torch.equal(a, b[2:4]) for a, b in zip(pair, whole, strict=True))


@pytest.mark.parametrize("options", [OPTIONS["gat"], OPTIONS["gcn"]], ids=["gat", "gcn"])
def test_windows_and_each_of_them(options: dict[str, Any]) -> None:
    model = model_of(16, torch.float32, **options)
    graph, series = graph_of(options, torch.float32), torch.randn(STOCKS, 60, FEATURES)
    starts = torch.tensor([3, 0, 40, 4, 5, 4, 51])
    with torch.no_grad():
        whole = model(hiermt.Windows(series, starts, STEPS), graph)
        for i in range(starts.numel()):
            alone = model(hiermt.Windows(series, starts[i : i + 1], STEPS), graph)
            plain = model(series[:, starts[i] : starts[i] + STEPS], graph)
            for a, b, c in zip(alone, whole, plain, strict=True):
                assert torch.equal(a[0], b[i]), "alone"
                assert torch.equal(c, b[i]), "plain"
