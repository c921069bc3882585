"""The transforms of torch.func, which see PyTorch operators alone: the twin computes under them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func

import hiermt
from hiermt import testing
from hiermt.graph import cache
from hiermt.native import extension


@pytest.fixture
def model() -> hiermt.TGCN_HierarchicalMT:
    torch.manual_seed(0)
    return hiermt.TGCN_HierarchicalMT(5, 8, use_gat=True).double()


@pytest.fixture
def graph() -> hiermt.Graph:
    edge_index, edge_weight = testing.stock_graph(12, 40)
    return hiermt.Graph(edge_index, edge_weight.double(), 12)


def make_loss(model: hiermt.TGCN_HierarchicalMT, graph: hiermt.Graph) -> Callable[[Any, Tensor], Tensor]:
    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        signal, direction = func.functional_call(model, params, (x, graph))
        return signal.square().sum() + direction.sin().sum()

    return loss


def test_gradients_of_a_sample_each(model: hiermt.TGCN_HierarchicalMT, graph: hiermt.Graph) -> None:
    params = {name: param.detach() for name, param in model.named_parameters()}
    x = torch.randn(3, 12, 6, 5, dtype=torch.float64)
    loss = make_loss(model, graph)
    each = func.vmap(func.grad(loss), (None, 0))(params, x)
    for b in range(3):
        leaves = {name: param.clone().requires_grad_() for name, param in params.items()}
        wanted = torch.autograd.grad(loss(leaves, x[b]), list(leaves.values()))
        for name, grad in zip(leaves, wanted, strict=True):
            torch.testing.assert_close(each[name][b], grad)


def test_an_ensemble(model: hiermt.TGCN_HierarchicalMT, graph: hiermt.Graph) -> None:
    models = [model, hiermt.TGCN_HierarchicalMT(5, 8, use_gat=True).double()]
    params, buffers = func.stack_module_state(models)
    x = torch.randn(12, 6, 5, dtype=torch.float64)
    found = func.vmap(lambda p: func.functional_call(model, (p, buffers), (x, graph))[0])(params)
    for one, part in zip(found, models, strict=True):
        torch.testing.assert_close(one, part(x, graph)[0])


def test_directional_derivative(model: hiermt.TGCN_HierarchicalMT, graph: hiermt.Graph) -> None:
    x, step = torch.randn(2, 12, 6, 5, dtype=torch.float64).unbind()
    _, slope = func.jvp(lambda a: model(a, graph)[0], (x,), (step,))
    ahead, behind = (model(x + e * step, graph)[0].detach() for e in (1e-6, -1e-6))
    torch.testing.assert_close(slope.detach(), (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-8)


def test_edges_that_are_made_inside_a_transform(model: hiermt.TGCN_HierarchicalMT, graph: hiermt.Graph) -> None:
    """Nothing of the transform stays in the caches."""
    x = torch.randn(12, 6, 5, dtype=torch.float64)

    def loss(scale: Tensor) -> Tensor:
        edge_index = graph.edge_index.flip(1)
        return model(scale * x, edge_index, graph.edge_weight)[0].sum()

    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    found = func.grad(loss)(scale.detach())
    torch.testing.assert_close(found, torch.autograd.grad(loss(scale), scale)[0])
    for one in cache._recent:
        assert not torch._C._functorch.is_functorch_wrapped_tensor(one.graph.edge_index)


@pytest.mark.skipif(extension.why_not_native("cpu") is not None, reason="needs the native operators")
def test_native_says_what_to_do_instead(model: hiermt.TGCN_HierarchicalMT, graph: hiermt.Graph) -> None:
    model.backend = "native"
    with pytest.raises(RuntimeError, match=r"torch\.func .*backend='auto'"):
        func.vmap(lambda a: model(a, graph)[0])(torch.randn(2, 12, 6, 5, dtype=torch.float64))


@pytest.mark.parametrize("use_gat", [True, False])
@pytest.mark.parametrize("way", ["graph", "raw edges", "edge weights", "windows"])
def test_linearized_once_and_applied_twice(graph: hiermt.Graph, use_gat: bool, way: str) -> None:
    net = hiermt.TGCN_HierarchicalMT(5, 8, 1, use_gat).double()
    edge_index, edge_weight = graph.edges()
    assert edge_weight is not None
    x = torch.randn(12, 2, 5, dtype=torch.float64)  # every step is traced
    starts = torch.tensor([0, 1])
    functions: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "graph": (lambda a: net(a, graph)[0], x),
        "raw edges": (lambda a: net(a, edge_index, edge_weight)[0], x),
        "edge weights": (lambda w: net(x, edge_index, w)[0], edge_weight),
        "windows": (lambda a: net(hiermt.Windows(a, starts, 1), graph)[0], x),
    }
    function, at = functions[way]
    value, linear = func.linearize(function, at)
    torch.testing.assert_close(value, function(at))
    for tangent in torch.randn(2, *at.shape, dtype=torch.float64):
        torch.testing.assert_close(linear(tangent), func.jvp(function, (at,), (tangent,))[1])
