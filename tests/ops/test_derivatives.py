"""Batched cotangents, dual tensors and whole Jacobians against reverse mode, a row at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, jacobian

import hiermt
from hiermt import functional, testing
from hiermt import windows as gather
from hiermt.native import extension

needs_native = pytest.mark.skipif(extension.why_not_native("cpu") is not None, reason="no native operators")
NODES, STEPS, FEATURES, HIDDEN = 7, 4, 3, 5
EDGES, WEIGHTS = (tensor.double() if tensor.is_floating_point() else tensor for tensor in testing.stock_graph(7, 20))
GRAPH = hiermt.Graph(EDGES, WEIGHTS, NODES)
Function = Callable[..., Any]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def model(backend: str = "auto", **options: Any) -> hiermt.TGCN_HierarchicalMT:
    torch.manual_seed(0)
    return hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN, backend=backend, **options).double()


def gates() -> list[Tensor]:
    return [part for _ in range(3) for part in (0.4 * randn(HIDDEN, FEATURES + 2 * HIDDEN), 0.4 * randn(HIDDEN))]


def case(name: str, backend: str) -> tuple[Function, Tensor]:
    """A function of one tensor, and that tensor."""
    x = randn(NODES, STEPS, FEATURES)
    g, h0, params = randn(NODES, STEPS, HIDDEN).sigmoid(), randn(NODES, HIDDEN), gates()
    gat, gcn = model(backend), model(backend, use_gat=False)
    edge = [randn(HIDDEN), randn(HIDDEN, 1)]
    conv = [randn(HIDDEN, FEATURES), randn(HIDDEN), randn(HIDDEN, FEATURES), randn(HIDDEN), randn(1, 1, HIDDEN)]
    starts = torch.tensor([0, 2, 1])
    labels, directions = torch.arange(NODES) % 2, torch.arange(NODES) // 2 % 2
    heads = [randn(HIDDEN, HIDDEN), randn(HIDDEN), randn(2, HIDDEN), randn(2), randn(2, HIDDEN), randn(2)]
    run = functional
    functions: dict[str, tuple[Function, Tensor]] = {
        "model": (lambda a: gat(a, GRAPH), x),
        "model, raw edges": (lambda a: gat(a, EDGES, WEIGHTS), x),
        "model, GCN": (lambda a: gcn(a, GRAPH), x),
        "model, edge weights": (lambda w: gat(x, EDGES, w), WEIGHTS),
        "model, edge weights of a graph": (lambda w: gat(x, hiermt.Graph(EDGES, w, NODES)), WEIGHTS),
        "model, GCN, edge weights": (lambda w: gcn(x, EDGES, w), WEIGHTS),
        "model, batch": (lambda a: gat(a, GRAPH), randn(2, NODES, STEPS, FEATURES)),
        "model, windows": (
            lambda a: gat(hiermt.Windows(a, starts, 3), GRAPH),
            randn(NODES, STEPS + 1, FEATURES),
        ),
        "backbone": (lambda a: gat.tgcn_backbone(a, GRAPH), x),
        "cell": (lambda a: gat.tgcn_backbone.cells[0](a, EDGES, WEIGHTS, h0), x[:, 0]),
        "stack": (lambda a: gat.tgcn_backbone.cells[0].gcn(a, EDGES, WEIGHTS), x),
        "gatv2_conv": (
            lambda a: run.gatv2_conv(a, GRAPH, *conv, *edge, backend=backend),
            x,
        ),
        "gcn_conv": (lambda w: run.gcn_conv(x, GRAPH, w, conv[1], activation="sigmoid", backend=backend), conv[0]),
        "gated_scan": (lambda a: run.gated_scan(x, a, h0, params, backend=backend), g),
        "gated_scan, state": (lambda a: run.gated_scan(x, g, a, params, sequence=False, backend=backend), h0),
        "gated_scan, weight": (lambda w: run.gated_scan(x, g, h0, [w, *params[1:]], backend=backend), params[0]),
        "gated_scan_windows": (
            lambda a: run.gated_scan_windows(a, g, torch.tensor([0, 1]), 3, params, backend=backend),
            x,
        ),
        "gather_windows": (lambda a: gather.gather_windows(a, torch.tensor([0, 1]), 3, backend=backend), x),
        "heads": (lambda a: run.heads(a, heads, backend=backend), h0),
        "decision": (lambda a: run.decision(a, heads, backend=backend)[:2], h0),
        "multitask_loss": (
            lambda a: run.multitask_loss(a, heads[0][:, :2].new_ones(NODES, 2), labels, directions, backend=backend),
            randn(NODES, 2),
        ),
        "multitask_loss, mask": (
            lambda a: run.multitask_loss(
                a.sin(),
                a,
                labels,
                directions,
                labels == 1,
                0.3,
                signal_weight=[0.5, 2.0],
                label_smoothing=0.1,
                focal_gamma=1.5,
                backend=backend,
            ),
            randn(NODES, 2),
        ),
        "MultiTaskLoss": (
            lambda a: tuple(
                hiermt.MultiTaskLoss(0.5, backend=backend).terms(a, 2 * a, labels, directions, labels == 1)
            ),
            randn(NODES, 2),
        ),
        "MultiTaskLoss, lambda": (
            lambda a: tuple(
                hiermt.MultiTaskLoss(a, backend=backend).terms(
                    torch.ones(NODES, 2, dtype=torch.float64), h0[:, :2], labels, directions, labels == 1
                )
            ),
            randn(1).abs(),
        ),
    }
    return functions[name]


NAMES = [
    *("model", "model, raw edges", "model, GCN", "model, edge weights", "model, edge weights of a graph"),
    *("model, GCN, edge weights", "model, batch", "model, windows", "backbone", "cell", "stack", "gatv2_conv"),
    *("gcn_conv", "gated_scan", "gated_scan, state", "gated_scan, weight", "gated_scan_windows", "gather_windows"),
    *("heads", "decision", "multitask_loss", "multitask_loss, mask", "MultiTaskLoss", "MultiTaskLoss, lambda"),
]


def flat(function: Function) -> Callable[[Tensor], Tensor]:
    """The same with one vector in place of several outputs."""

    def run(a: Tensor) -> Tensor:
        out = function(a)
        return torch.cat([one.reshape(-1) for one in ((out,) if isinstance(out, Tensor) else out)])

    return run


def by_rows(run: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The Jacobian ``[outputs, *at.shape]`` in reverse mode, without any batching."""
    leaf = at.detach().clone().requires_grad_()
    out = run(leaf)
    rows = [torch.autograd.grad(one, leaf, retain_graph=True, allow_unused=True)[0] for one in out]
    return torch.stack([torch.zeros_like(at) if row is None else row for row in rows])


@pytest.mark.parametrize("name", NAMES)
def test_batched_cotangents(name: str, backend: str) -> None:
    function, at = case(name, backend)
    run = flat(function)
    expected = by_rows(run, at)
    torch.testing.assert_close(jacobian(run, at, vectorize=True), expected)
    leaf = at.detach().clone().requires_grad_()
    out = run(leaf)
    cotangents = randn(3, out.numel())
    wanted = torch.tensordot(cotangents, expected, 1)
    (found,) = torch.autograd.grad(out, leaf, cotangents, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(found, wanted)
    (single,) = torch.autograd.grad(out, leaf, cotangents[:1], is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(single, wanted[:1])
    found = func.vmap(lambda v: torch.autograd.grad(out, leaf, v, retain_graph=True)[0])(cotangents)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_dual_tensors(name: str) -> None:
    function, at = case(name, "auto")
    run = flat(function)
    tangent = randn(*at.shape)
    expected = by_rows(run, at)
    run(at)  # whatever is prepared and kept for these tensors must not hide the tangent
    with forward_ad.dual_level():
        primal, found = forward_ad.unpack_dual(run(forward_ad.make_dual(at, tangent)))
        assert found is not None
        torch.testing.assert_close(primal, run(at))
        torch.testing.assert_close(found, (expected * tangent).flatten(1).sum(1))
    torch.testing.assert_close(jacobian(run, at, strategy="forward-mode", vectorize=True), expected)
    torch.testing.assert_close(func.jacfwd(run)(at), expected)
    torch.testing.assert_close(func.jacrev(run)(at), expected)
    # What was computed under the transforms is not kept either.
    torch.testing.assert_close(by_rows(run, at), expected)


@pytest.mark.parametrize("use_gat", [True, False])
@pytest.mark.parametrize("through", ["raw edges", "graph"])
def test_edge_weights_of_a_batch_each(use_gat: bool, through: str) -> None:
    net, x = model(use_gat=use_gat), randn(NODES, STEPS, FEATURES)
    weights = torch.rand(3, WEIGHTS.numel(), dtype=torch.float64)

    def run(weight: Tensor) -> Tensor:
        graph = (hiermt.Graph(EDGES, weight, NODES),) if through == "graph" else (EDGES, weight)
        return net(x, *graph)[0]

    torch.testing.assert_close(func.vmap(run)(weights), torch.stack([run(weight) for weight in weights]))


@needs_native
def test_native_refuses_dual_tensors_by_name() -> None:
    function, at = case("model", "native")
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"forward-mode .*backend='auto'"):
        function(forward_ad.make_dual(at, at))
    function(at)


@pytest.mark.hostile("double-backward")
@needs_native
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        *("model", "model, edge weights", "model, GCN, edge weights", "gated_scan", "gatv2_conv", "heads"),
        *("multitask_loss", "multitask_loss, mask"),
    ],
)
def test_second_derivatives_name_the_reference(name: str, vectorize: bool) -> None:
    function, at = case(name, "native")
    run = flat(function)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        hessian(lambda a: run(a).square().sum(), at, vectorize=vectorize)
    function, at = case(name, "reference")
    run = flat(function)
    assert hessian(lambda a: run(a).square().sum(), at, vectorize=vectorize).isfinite().all()
