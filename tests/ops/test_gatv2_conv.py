"""``hiermt::gatv2_conv`` against PyG's ``GATv2Conv``, its twin, float64 and its own promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hiermt import functional
from hiermt.graph import Graph
from hiermt.native import extension
from hiermt.testing import assert_close, batched, stock_graph
from support.gatv2_cases import gradients, make
from support.graphs import small_graphs
from support.native_checks import STRIDES, assert_as_exact_as_the_twin, assert_same_bits, strided
from support.properties import given, settings

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from support.single_convolutions import ops, reference

# copies, T, F, H: full and partial chunks of lanes, channels on both sides of every register block.
SHAPES = [
    (1, 25, 13, 16),
    (3, 6, 16, 16),
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 33, 3, 9),
    (5, 1, 17, 33),
    (4, 4, 8, 8),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", [reference.NONE, reference.LEAKY_RELU, reference.SIGMOID])
@pytest.mark.parametrize("edge", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_twin(shape: tuple[int, int, int, int], edge: bool, activation: int, dtype: torch.dtype) -> None:
    case = make(*shape, dtype=dtype, edge=edge)
    out, grads = gradients(ops.gatv2_conv, case, activation)
    expected, expected_grads = gradients(reference.gatv2_conv, case.to(torch.float64), activation)
    assert out.dtype == dtype
    assert_close(out, expected)
    for got, want, leaf in zip(grads, expected_grads, case.leaves(), strict=True):
        assert got.shape == leaf.shape and got.dtype == leaf.dtype
        assert_close(got, want, gradient=True)


def pyg_conv(edge: bool, f: int, h: int, dtype: torch.dtype) -> Any:
    nn = pytest.importorskip("torch_geometric.nn")
    conv = nn.GATv2Conv(f, h, heads=1, edge_dim=1 if edge else None, negative_slope=0.2).to(dtype)
    torch.nn.init.normal_(conv.bias)
    return conv


def compare_with_pyg(num_nodes: int, edge_index: Tensor, weight: Tensor | None, dtype: torch.dtype) -> None:
    """Values, the gradients of x, of all parameters and of the edge weights, PyG stepped through time."""
    conv = pyg_conv(weight is not None, 3, 5, dtype)
    params = [conv.lin_l.weight, conv.lin_l.bias, conv.lin_r.weight, conv.lin_r.bias, conv.att, conv.bias]
    params += [] if weight is None else [conv.lin_edge.weight]
    x = torch.randn(num_nodes, 4, 3, dtype=dtype).requires_grad_()
    weight = None if weight is None else weight.to(dtype).requires_grad_()
    leaves = [x, *params] if weight is None else [x, *params, weight]

    expected = torch.stack([conv(x[:, t], edge_index, weight) for t in range(x.size(1))], dim=1)
    expected = torch.nn.functional.leaky_relu(expected, 0.01)
    graph = Graph(edge_index, weight, num_nodes)
    out = functional.gatv2_conv(x, graph, *params, activation="leaky_relu", backend="native")
    assert_close(out, expected)
    cotangent = torch.randn_like(expected)
    want = torch.autograd.grad(expected, leaves, cotangent, allow_unused=True)
    got = torch.autograd.grad(out, leaves, cotangent, allow_unused=True)
    for a, b, leaf in zip(got, want, leaves, strict=True):
        zeros = torch.zeros_like(leaf)
        assert_close(zeros if a is None else a, zeros if b is None else b, gradient=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", [True, False])
def test_equals_pyg(edge: bool, dtype: torch.dtype) -> None:
    edge_index, weight = stock_graph(60, 400)
    compare_with_pyg(60, edge_index, weight if edge else None, dtype)


@pytest.mark.parametrize("copies", [1, 4])
def test_equals_pyg_on_a_batch(copies: int) -> None:
    edge_index, weight = batched(*stock_graph(12, 40), 12, copies)
    compare_with_pyg(12 * copies, edge_index, weight, torch.float64)


@settings(max_examples=60, deadline=None)
@given(small_graphs())
def test_equals_pyg_on_any_small_graph(case: tuple[int, Tensor, Tensor]) -> None:
    """Loops are replaced by one with the mean weight, duplicates count twice, isolated nodes see themselves."""
    num_nodes, edge_index, weight = case
    if num_nodes > 0:
        compare_with_pyg(num_nodes, edge_index, weight, torch.float64)


def test_error_is_at_most_twice_the_twins() -> None:
    """In float32 against float64, at the size that users have."""
    case = make(4, 25, 13, 16, nodes=100)
    exact = gradients(reference.gatv2_conv, case.to(torch.float64), reference.SIGMOID)
    native, twin = (gradients(run, case, reference.SIGMOID) for run in (ops.gatv2_conv, reference.gatv2_conv))
    assert_as_exact_as_the_twin(native, twin, exact, together=True)


@pytest.mark.parametrize("edge", [True, False])
def test_gradcheck(edge: bool) -> None:
    case = make(2, 3, 3, 4, torch.float64, edge, nodes=5)

    def run(*leaves: Tensor) -> Tensor:
        weight, lin_edge = leaves[7:] if edge else (None, None)
        return ops.gatv2_conv(leaves[0], case.csr, weight, leaves[1:7], lin_edge, reference.SIGMOID)

    assert torch.autograd.gradcheck(run, case.leaves())


@pytest.mark.parametrize(("nodes", "steps"), [(1, 1), (1, 40), (700, 2), (40, 1)])
def test_one_block_alone_shared_out_among_threads(nodes: int, steps: int) -> None:
    """One chunk of instances only: the nodes themselves are cut into ranges."""
    edge_index = torch.randint(0, nodes, (2, nodes * 5))
    entries = Graph(edge_index, torch.rand(nodes * 5), nodes).csr(reference.GATV2_RULE, True, torch.float64)
    case = make(1, steps, 4, 6, torch.float64)._replace(
        x=torch.randn(nodes, steps, 4, dtype=torch.float64).requires_grad_(), csr=entries.tensors
    )
    case = case._replace(edge_weight=entries.weight).to(torch.float64)
    out, grads = gradients(ops.gatv2_conv, case, reference.LEAKY_RELU)
    expected, expected_grads = gradients(reference.gatv2_conv, case, reference.LEAKY_RELU)
    assert_close(out, expected)
    for got, want in zip(grads, expected_grads, strict=True):
        assert_close(got, want, gradient=True)


@pytest.mark.parametrize("kind", STRIDES)
def test_any_strides_of_x(kind: str) -> None:
    case = make(2, 18, 4, 6)
    outs = [
        gradients(ops.gatv2_conv, case._replace(x=x.requires_grad_()), reference.NONE) for x in strided(kind, 40, 18, 4)
    ]
    assert torch.equal(outs[0][0], outs[1][0])
    for a, b in zip(outs[0][1], outs[1][1], strict=True):
        assert torch.equal(a, b)


def test_incoming_gradients_of_any_strides() -> None:
    case = make(2, 5, 4, 6)
    out = ops.gatv2_conv(*case, reference.SIGMOID)
    for cotangent in (torch.ones(()).expand(out.shape), torch.randn(out.shape[::-1]).permute(2, 1, 0)):
        got = torch.autograd.grad(out, case.leaves(), cotangent, retain_graph=True)
        want = torch.autograd.grad(out, case.leaves(), cotangent.contiguous(), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("nodes", "steps", "edges"), [(0, 4, 0), (3, 0, 4), (0, 0, 0), (5, 3, 0)])
def test_empty(nodes: int, steps: int, edges: int) -> None:
    edge_index = torch.randint(0, max(nodes, 1), (2, edges))
    entries = Graph(edge_index, torch.rand(edges), nodes).csr(reference.GATV2_RULE, True, torch.float32)
    case = make(1, 1, 2, 3)._replace(x=torch.randn(nodes, steps, 2), csr=entries.tensors, edge_weight=entries.weight)
    case = case.to(torch.float32)
    out, grads = gradients(ops.gatv2_conv, case, reference.NONE)
    assert out.shape == (nodes, steps, 3)
    expected, expected_grads = gradients(reference.gatv2_conv, case, reference.NONE)
    assert_close(out, expected)
    for got, want in zip(grads, expected_grads, strict=True):
        assert_close(got, want, gradient=True)


WHERE = ["x", "lin_l.weight", "lin_l.bias", "lin_r.weight", "att", "bias", "edge"]
SPECIAL = [(where, value) for where in WHERE for value in (torch.nan, torch.inf, -torch.inf, 1e4, -1e4)]
# Not for lin_l.bias and att: a huge term in every score drowns the differences between them.
SPECIAL += [(where, 1e308) for where in WHERE if where not in ("lin_l.bias", "att")]


@pytest.mark.parametrize(("where", "value"), SPECIAL)
def test_nan_infinity_and_huge_values(where: str, value: float) -> None:
    """In float64: what float32 makes of 1e4 depends on the order of every sum."""
    case = make(2, 4, 3, 5, torch.float64)
    names = {"lin_l.weight": 0, "lin_l.bias": 1, "lin_r.weight": 2, "att": 4, "bias": 5}
    target = case.x if where == "x" else case.edge_weight if where == "edge" else case.params[names[where]]
    assert target is not None
    with torch.no_grad():
        target[(0,) * (target.dim() - 1) + (1,)] = value
    out = ops.gatv2_conv(*case, reference.NONE)
    expected = reference.gatv2_conv(*case, reference.NONE)
    assert_close(out, expected)


def test_a_source_at_minus_infinity_gets_no_attention() -> None:
    """Its score is -inf where att is positive: out of the softmax, although 0.6 z + 0.4 |z| would be NaN."""
    case = make(1, 3, 1, 2, edge=False)
    with torch.no_grad():
        case.params[0].copy_(torch.tensor([[1.0], [0.0]]))
        case.params[4].fill_(0.5)
        case.x[4, 1] = -3e38
        case.params[1][0] = -3e38
    out = ops.gatv2_conv(*case, reference.NONE)
    expected = reference.gatv2_conv(*case, reference.NONE)
    assert expected[:, 1, 1].isfinite().any()
    assert torch.equal(out.isnan(), expected.isnan())


def test_nan_stays_where_it_can_reach() -> None:
    """A NaN in one copy, node and step is seen by the node's targets at that copy and step, and by nobody else."""
    case = make(2, 20, 3, 5)
    with torch.no_grad():
        case.x[3, 7] = torch.nan
    out = ops.gatv2_conv(*case, reference.LEAKY_RELU)
    assert_close(out, reference.gatv2_conv(*case, reference.LEAKY_RELU))
    assert out[:, 7].isnan().any() and not out[20:].isnan().any()
    assert not out[:, :7].isnan().any() and not out[:, 8:].isnan().any()


def test_same_bits_alone_and_among_others() -> None:
    """An instance's numbers depend on its own inputs alone, whatever lane and chunk it falls into."""
    case = make(5, 7, 4, 9)
    out, grads = gradients(ops.gatv2_conv, case, reference.SIGMOID)
    cotangent = torch.cos(torch.arange(out.numel())).bfloat16().reshape(out.shape).float()
    for copy in range(5):
        rows = slice(20 * copy, 20 * copy + 20)
        x = case.x[rows].detach().requires_grad_()
        part = ops.gatv2_conv(*case._replace(x=x), reference.SIGMOID)
        assert torch.equal(part, out[rows])
        (grad,) = torch.autograd.grad(part, [x], cotangent[rows])
        assert torch.equal(grad, grads[0][rows])


def test_same_bits_for_any_thread_count_and_run() -> None:
    case = make(8, 25, 5, 16, nodes=50)
    assert_same_bits(lambda: gradients(ops.gatv2_conv, case, reference.SIGMOID))
