"""``hiermt::gcn_conv`` against its twin, PyG and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hiermt import Graph
from hiermt.native import extension
from hiermt.testing import assert_close, batched, stock_graph
from support.native_checks import STRIDES, assert_as_exact_as_the_twin, assert_same_bits, strided

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


def gradients(run: Callable[..., Tensor], case: Case, activation: int) -> tuple[Tensor, list[Tensor]]:
    out = run(*case, activation)
    cotangent = torch.cos(torch.arange(out.numel())).bfloat16().reshape(out.shape).to(out.dtype)
    return out, list(torch.autograd.grad(out, case.leaves(), cotangent))


# nodes, edges, copies, T, F, H
SHAPES = [(7, 20, 1, 5, 4, 3), (7, 20, 5, 5, 13, 16), (1, 0, 3, 2, 1, 1), (30, 300, 2, 26, 8, 33), (4, 0, 2, 3, 2, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", [reference.NONE, reference.LEAKY_RELU, reference.SIGMOID])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_twin(shape: tuple[int, int, int, int, int, int], activation: int, dtype: torch.dtype) -> None:
    nodes, edges, copies, t, f, h = shape
    case = make(some_edges(nodes, edges), nodes, copies, t, f, h, dtype)
    out, grads = gradients(ops.gcn_conv, case, activation)
    expected, expected_grads = gradients(reference.gcn_conv, case.to(torch.float64), activation)
    assert out.dtype == dtype
    assert_close(out, expected)
    for got, want, leaf in zip(grads, expected_grads, case.leaves(), strict=True):
        assert got.shape == leaf.shape and got.dtype == leaf.dtype
        assert_close(got, want, gradient=True)


@pytest.mark.parametrize("copies", [1, 3])
def test_equals_pyg(copies: int) -> None:
    """Output and gradients, one graph and a batch of copies of it."""
    pyg = pytest.importorskip("torch_geometric.nn")
    edges = stock_graph()
    case = make(edges, 100, copies, 4, 13, 16)
    layer = pyg.GCNConv(13, 16)
    with torch.no_grad():
        layer.lin.weight.copy_(case.params[0])
        layer.bias.copy_(case.params[1])
    x = case.x.detach().requires_grad_()
    index, weight = batched(*edges, 100, copies)
    expected = torch.stack([layer(x[:, t], index, weight) for t in range(4)], dim=1)
    out, grads = gradients(ops.gcn_conv, case, reference.NONE)
    assert_close(out, expected)
    cotangent = torch.cos(torch.arange(out.numel())).bfloat16().reshape(out.shape).float()
    want = torch.autograd.grad(expected, [x, layer.lin.weight, layer.bias], cotangent)
    for a, b in zip([grads[0], *grads[2:]], want, strict=True):
        assert_close(a, b, gradient=True)


@pytest.mark.parametrize("activation", [reference.NONE, reference.LEAKY_RELU, reference.SIGMOID])
def test_gradcheck(activation: int) -> None:
    case = make(some_edges(5, 12), 5, 2, 3, 2, 3, torch.float64)

    def run(x: Tensor, norm: Tensor, *params: Tensor) -> Tensor:
        return ops.gcn_conv(x, case.csr, norm, params, activation)

    assert torch.autograd.gradcheck(run, case.leaves())


def test_error_is_at_most_twice_the_twins() -> None:
    """In float32 against float64, at the size that users have."""
    case = make(stock_graph(), 100, 4, 25, 13, 16)
    exact = gradients(reference.gcn_conv, case.to(torch.float64), reference.SIGMOID)
    native, twin = (gradients(run, case, reference.SIGMOID) for run in (ops.gcn_conv, reference.gcn_conv))
    assert_as_exact_as_the_twin(native, twin, exact)


@pytest.mark.parametrize("kind", STRIDES)
def test_any_strides_of_x(kind: str) -> None:
    case = make(some_edges(7, 20), 7, 2, 5, 4, 6)
    views = [case._replace(x=x.requires_grad_()) for x in strided(kind, 14, 5, 4)]
    runs = [gradients(ops.gcn_conv, view, reference.SIGMOID) for view in views]
    for a, b in zip([runs[0][0], *runs[0][1]], [runs[1][0], *runs[1][1]], strict=True):
        assert torch.equal(a, b)


def test_incoming_gradient_of_stride_zero() -> None:
    case = make(some_edges(7, 20), 7, 2, 5, 4, 6)
    out = ops.gcn_conv(*case, reference.LEAKY_RELU)
    got = torch.autograd.grad(out, case.leaves(), torch.ones(()).expand(out.shape), retain_graph=True)
    want = torch.autograd.grad(out, case.leaves(), torch.ones_like(out))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("nodes", "copies", "t"), [(0, 0, 3), (4, 0, 3), (4, 2, 0)])
def test_empty(nodes: int, copies: int, t: int) -> None:
    edges = some_edges(nodes, 6) if nodes else (torch.zeros(2, 0, dtype=torch.long), torch.zeros(0))
    case = make(edges, nodes, copies, t, 3, 5)
    out, grads = gradients(ops.gcn_conv, case, reference.LEAKY_RELU)
    assert out.shape == (nodes * copies, t, 5)
    for got, leaf in zip(grads, case.leaves(), strict=True):
        assert got.shape == leaf.shape and not got.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("where", ["x", "norm", "weight"])
def test_nan_and_infinity_reach_what_the_twins_reach(where: str, value: float) -> None:
    case = make(some_edges(7, 20), 7, 2, 3, 4, 5)
    target = {"x": case.x, "norm": case.norm, "weight": case.params[0]}[where]
    with torch.no_grad():
        target[(1,) * target.dim()] = value
    out = ops.gcn_conv(*case, reference.SIGMOID)
    assert_close(out, reference.gcn_conv(*case, reference.SIGMOID))


def test_same_bits_for_any_thread_count_and_run() -> None:
    case = make(stock_graph(), 100, 8, 12, 13, 16)
    assert_same_bits(lambda: gradients(ops.gcn_conv, case, reference.SIGMOID))


def test_one_large_graph() -> None:
    """Too large for one task: its nodes are shared out."""
    nodes = 20_000
    case = make(some_edges(nodes, 100_000), nodes, 1, 2, 8, 16)
    out, grads = gradients(ops.gcn_conv, case, reference.LEAKY_RELU)
    expected, expected_grads = gradients(reference.gcn_conv, case.to(torch.float64), reference.LEAKY_RELU)
    assert_close(out, expected)
    for got, want in zip(grads, expected_grads, strict=True):
        # Sums over 40,000 rows, compared by what they are large against.
        assert_close(got / want.abs().max(), want / want.abs().max(), gradient=True)


def test_opcheck() -> None:
    case = make(some_edges(5, 12), 5, 2, 3, 2, 4)
    options = {"conv_layers": 1, "activation": reference.SIGMOID, "tf32": False}
    torch.library.opcheck(torch.ops.hiermt.conv_stack, (case.x, list(case.csr), case.norm, case.params), options)
    plain = case.x.detach(), list(case.csr), case.norm.detach(), [param.detach() for param in case.params]
    out = torch.ops.hiermt.conv_stack(*plain, **options)
    torch.library.opcheck(
        torch.ops.hiermt.conv_stack_backward,
        (torch.ones_like(out), *plain, out),
        {**options, "need_x": True, "need_conv": True, "need_edge_weight": True},
    )


def test_double_backward_is_refused_by_name() -> None:
    case = make(some_edges(5, 12), 5, 1, 2, 2, 3)
    (grad,) = torch.autograd.grad(ops.gcn_conv(*case, reference.NONE).sum(), [case.x], create_graph=True)
    with pytest.raises(NotImplementedError, match="conv_stack"):
        grad.sum().backward()


def test_autocast() -> None:
    case = make(some_edges(7, 20), 7, 2, 3, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.gcn_conv(*case, reference.SIGMOID)
    assert out.dtype == torch.bfloat16
    assert_close(out, reference.gcn_conv(*case, reference.SIGMOID))
    out.float().sum().backward()
    assert case.x.grad is not None and case.x.grad.dtype == torch.float32


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
