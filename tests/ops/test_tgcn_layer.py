"""``hiermt::tgcn_layer`` against PyG stepped through time, its twin, float64 and its own promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hiermt import functional
from hiermt.graph import Graph
from hiermt.native import extension
from hiermt.nn import TGCNCell
from hiermt.testing import assert_close, stock_graph
from support.graphs import small_graphs
from support.native_checks import STRIDES, assert_as_exact_as_the_twin, assert_same_bits, strided
from support.properties import given, settings

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from support.single_convolutions import ops, reference

# copies, T, F, H
SHAPES = [(1, 25, 13, 16), (3, 6, 5, 7), (1, 1, 1, 1), (2, 19, 17, 33), (5, 1, 8, 8)]
# conv_layers, gat, edge, between: the three variants that people run, and deeper ones.
VARIANTS = [
    (2, True, True, True),
    (1, True, False, False),
    (2, False, False, True),
    (1, True, True, True),
    (3, True, True, False),
    (3, False, False, False),
]


class Case(NamedTuple):
    x: Tensor
    csr: list[Tensor]
    edge_weight: Tensor | None
    convs: list[Tensor]
    gates: list[Tensor]
    flags: tuple[int, bool, bool, bool]

    def leaves(self) -> list[Tensor]:
        return [self.x, *self.convs, *self.gates, *([] if self.edge_weight is None else [self.edge_weight])]

    def to(self, dtype: torch.dtype) -> Case:
        def copy(value: Tensor | None) -> Any:
            return None if value is None else value.detach().to(dtype).requires_grad_()

        convs, gates = [copy(p) for p in self.convs], [copy(p) for p in self.gates]
        return Case(copy(self.x), self.csr, copy(self.edge_weight), convs, gates, self.flags)


def make(
    shape: tuple[int, int, int, int],
    variant: tuple[int, bool, bool, bool] = VARIANTS[0],
    dtype: torch.dtype = torch.float32,
    nodes: int = 20,
) -> Case:
    copies, t, f, h = shape
    layers, gat, edge, _ = variant
    edge_index, weight = stock_graph(nodes, nodes * 4, isolated=2)
    rule = reference.GATV2_RULE if gat else reference.GCN_RULE
    entries = Graph(edge_index, weight, nodes).csr(rule, edge or not gat, torch.float64)
    convs = []
    for i in range(layers):
        inputs = f if i == 0 else h
        shapes = [(h, inputs), (h,), (h, inputs), (h,), (1, 1, h), (h,)] if gat else [(h, inputs), (h,)]
        convs += [torch.randn(s) * (1 / inputs**0.5 if len(s) == 2 else 0.4) for s in shapes]
        convs += [torch.randn(h, 1) * 0.5] if edge else []
    scale = 2 / (f + 2 * h) ** 0.5
    gates = [torch.randn(h, f + 2 * h) * scale if i % 2 == 0 else torch.randn(h) * 0.3 for i in range(6)]
    return Case(torch.randn(copies * nodes, t, f), entries.tensors, entries.weight, convs, gates, variant).to(dtype)


def flags(case: Case, sequence: bool, save: bool) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    layers, _, _, between = case.flags
    options = {"conv_layers": layers, "between": between, "sequence": sequence, "save": save}
    return {**options, "steps": 0, "tf32": False}


def gradients(run: Callable[..., Tensor], case: Case, sequence: bool) -> tuple[Tensor, list[Tensor]]:
    """Output and the gradient of everything, under a cotangent that is the same for every implementation."""
    out = run(case.x, case.csr, case.edge_weight, case.convs, case.gates, *case.flags, sequence)
    cotangent = torch.cos(torch.arange(out.numel())).bfloat16().reshape(out.shape).to(out.dtype)
    return out, list(torch.autograd.grad(out, case.leaves(), cotangent))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_twin(
    shape: tuple[int, int, int, int], variant: tuple[int, bool, bool, bool], sequence: bool, dtype: torch.dtype
) -> None:
    case = make(shape, variant, dtype)
    out, grads = gradients(ops.tgcn_layer, case, sequence)
    expected, expected_grads = gradients(reference.tgcn_layer, case.to(torch.float64), sequence)
    assert out.dtype == dtype
    assert_close(out, expected)
    for got, want, leaf in zip(grads, expected_grads, case.leaves(), strict=True):
        assert got.shape == leaf.shape and got.dtype == leaf.dtype
        assert_close(got, want, gradient=True)


@pytest.mark.parametrize("sequence", [True, False])
def test_bfloat16_storage(sequence: bool) -> None:
    case = make((2, 8, 13, 16), dtype=torch.bfloat16)
    out, grads = gradients(ops.tgcn_layer, case, sequence)
    expected, expected_grads = gradients(reference.tgcn_layer, case.to(torch.float64), sequence)
    assert out.dtype == torch.bfloat16
    assert_close(out, expected)
    for got, want, leaf in zip(grads, expected_grads, case.leaves(), strict=True):
        assert got.dtype == leaf.dtype
        assert_close(got, want, gradient=True)


def compare_with_pyg(
    num_nodes: int, edge_index: Tensor, weight: Tensor | None, variant: tuple[int, bool, bool, bool]
) -> None:
    """A layer of the package on the native operator against PyG's convolutions, stepped through time."""
    pyg = pytest.importorskip("hiermt.testing.pyg")
    layers, gat, edge, between = variant
    settings = {
        "use_gat": gat,
        "conv_layers": layers,
        "edge_dim": 1 if edge else None,
        "conv_activation": "between" if between else "after",
    }
    cell = TGCNCell(3, 5, backend="native", **settings).double()
    oracle = pyg.Cell(3, 5, **settings).double()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    oracle.load_state_dict(cell.state_dict())
    x = torch.randn(num_nodes, 4, 3, dtype=torch.float64).requires_grad_()
    weight = None if weight is None else weight.requires_grad_()

    state, states = x.new_zeros(num_nodes, 5), []
    for t in range(x.size(1)):
        state = oracle(x[:, t], edge_index, weight, state)
        states.append(state)
    expected = torch.stack(states, dim=1)
    out = cell.run_sequence(x, Graph(edge_index, weight, num_nodes), cell.op_parameters(), sequence=True)
    assert_close(out, expected)
    cotangent = torch.randn_like(expected)
    inputs = [x] if weight is None else [x, weight]
    names = [name for name, _ in cell.named_parameters()]
    ours, theirs = dict(cell.named_parameters()), dict(oracle.named_parameters())
    got = torch.autograd.grad(out, [*inputs, *(ours[n] for n in names)], cotangent, allow_unused=True)
    want = torch.autograd.grad(expected, [*inputs, *(theirs[n] for n in names)], cotangent, allow_unused=True)
    for a, b, like in zip(got, want, [*inputs, *(ours[n] for n in names)], strict=True):
        zeros = torch.zeros_like(like)
        assert_close(zeros if a is None else a, zeros if b is None else b, gradient=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_pyg(variant: tuple[int, bool, bool, bool]) -> None:
    edge_index, weight = stock_graph(40, 240)
    used = variant[2] or not variant[1]
    compare_with_pyg(40, edge_index, weight.double() if used else None, variant)


@settings(max_examples=25, deadline=None)
@given(small_graphs())
def test_equals_pyg_on_any_small_graph(case: tuple[int, Tensor, Tensor]) -> None:
    num_nodes, edge_index, weight = case
    if num_nodes > 0:
        compare_with_pyg(num_nodes, edge_index, weight, VARIANTS[0])


def test_error_is_at_most_twice_the_twins() -> None:
    """In float32 against float64, at the size that users have."""
    case = make((4, 25, 13, 16), nodes=100)
    exact = gradients(reference.tgcn_layer, case.to(torch.float64), True)
    native, twin = (gradients(run, case, True) for run in (ops.tgcn_layer, reference.tgcn_layer))
    assert_as_exact_as_the_twin(native, twin, exact, together=True)


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_gradcheck(variant: tuple[int, bool, bool, bool], sequence: bool) -> None:
    case = make((2, 3, 2, 3), variant, torch.float64, nodes=4)
    count = len(case.convs)

    def run(*leaves: Tensor) -> Tensor:
        weight = leaves[count + 7] if case.edge_weight is not None else None
        convs, gates = list(leaves[1 : 1 + count]), list(leaves[1 + count : count + 7])
        return ops.tgcn_layer(leaves[0], case.csr, weight, convs, gates, *case.flags, sequence)

    assert torch.autograd.gradcheck(run, case.leaves())


@pytest.mark.parametrize("kind", STRIDES)
def test_any_strides_of_x(kind: str) -> None:
    case = make((2, 18, 4, 6))
    views = [case._replace(x=x.requires_grad_()) for x in strided(kind, 40, 18, 4)]
    outs = [gradients(ops.tgcn_layer, view, True) for view in views]
    assert torch.equal(outs[0][0], outs[1][0])
    for a, b in zip(outs[0][1], outs[1][1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize(("nodes", "steps"), [(0, 4), (20, 0)])
def test_empty(nodes: int, steps: int, sequence: bool) -> None:
    case = make((1, 1, 2, 3))
    case = case._replace(x=torch.randn(nodes, steps, 2).requires_grad_())
    out, grads = gradients(ops.tgcn_layer, case, sequence)
    assert_close(
        out, reference.tgcn_layer(case.x, case.csr, case.edge_weight, case.convs, case.gates, *case.flags, sequence)
    )
    for got, leaf in zip(grads, case.leaves(), strict=True):
        assert torch.equal(got, torch.zeros_like(leaf))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4, -1e4])
@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_nan_infinity_and_saturation(variant: tuple[int, bool, bool, bool], value: float) -> None:
    case = make((2, 4, 3, 5), variant)
    with torch.no_grad():
        case.x[1, 1, 1] = value
    out, _ = gradients(ops.tgcn_layer, case, True)
    expected, _ = gradients(reference.tgcn_layer, case, True)
    assert_close(out, expected)


def test_same_bits_for_any_thread_count_and_run() -> None:
    case = make((8, 25, 5, 16), nodes=50)
    assert_same_bits(lambda: gradients(ops.tgcn_layer, case, False))


@pytest.mark.parametrize("sequence", [True, False])
def test_keeps_five_states_a_node_and_step(sequence: bool) -> None:
    """h, three gates and g; nothing at all without a gradient."""
    case = make((2, 7, 3, 5))
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    arguments = (case.x, case.csr, case.edge_weight, case.convs, case.gates, *case.flags, sequence)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.tgcn_layer(*arguments)
    given = [case.x, *case.csr, *case.convs, *case.gates, case.edge_weight]
    for tensor in given:
        assert tensor is not None
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    assert sum(saved.values()) == 5 * 40 * 7 * 5 * 4
    with torch.no_grad():
        _, *kept = torch.ops.hiermt.tgcn_layer(*arguments[:5], None, **flags(case, sequence, False))
    assert all(tensor.numel() == 0 for tensor in kept)


def test_only_what_is_asked_for_is_computed() -> None:
    case = make((2, 3, 2, 5))
    full = gradients(reference.tgcn_layer, case, True)[1]
    count = len(case.convs)
    for index, want in enumerate(full):
        only = [leaf.detach() for leaf in case.leaves()]
        only[index].requires_grad_()
        convs, gates, weight = only[1 : 1 + count], only[1 + count : 7 + count], only[7 + count]
        out = ops.tgcn_layer(only[0], case.csr, weight, convs, gates, *case.flags, True)
        cotangent = torch.cos(torch.arange(out.numel())).bfloat16().reshape(out.shape).float()
        (grad,) = torch.autograd.grad(out, [only[index]], cotangent)
        assert_close(grad, want, gradient=True)


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_opcheck(variant: tuple[int, bool, bool, bool], sequence: bool) -> None:
    case = make((2, 3, 2, 4), variant)
    options = flags(case, sequence, True)
    arguments = (case.x, case.csr, case.edge_weight, case.convs, case.gates, None)
    torch.library.opcheck(torch.ops.hiermt.tgcn_layer, arguments, options)
    plain = make((2, 3, 2, 4), variant)
    weight = None if plain.edge_weight is None else plain.edge_weight.detach()
    convs, gates = [p.detach() for p in plain.convs], [p.detach() for p in plain.gates]
    inputs = (plain.x.detach(), plain.csr, weight, convs, gates, None)
    out, h, saved, g = torch.ops.hiermt.tgcn_layer(*inputs, **options)
    needs = {"need_x": True, "need_conv": True, "need_gates": True, "need_edge_weight": weight is not None}
    del options["save"]
    torch.library.opcheck(
        torch.ops.hiermt.tgcn_layer_backward,
        (torch.ones_like(out), *inputs, out if sequence else h, saved, g),
        {**options, **needs},
    )


def test_eager_and_registered_rules_agree() -> None:
    case = make((2, 5, 3, 4))

    def registered(*arguments: Any) -> Tensor:
        return torch.ops.hiermt.tgcn_layer(*arguments[:5], None, **flags(case, True, True))[0]  # type: ignore[no-any-return]

    eager, direct = gradients(ops.tgcn_layer, case, True), gradients(registered, case, True)
    assert torch.equal(eager[0], direct[0])
    assert all(torch.equal(a, b) for a, b in zip(eager[1], direct[1], strict=True))


def test_double_backward_is_refused_by_name() -> None:
    case = make((1, 2, 2, 3))
    out = ops.tgcn_layer(case.x, case.csr, case.edge_weight, case.convs, case.gates, *case.flags, True)
    (grad,) = torch.autograd.grad(out.sum(), [case.x], create_graph=True)
    with pytest.raises(NotImplementedError, match="tgcn_layer"):
        grad.sum().backward()


def test_arguments_are_checked_before_anything_is_read() -> None:
    case = make((2, 3, 2, 5))
    good = [
        case.x.detach(),
        case.csr,
        case.edge_weight,
        case.convs,
        case.gates,
        *case.flags,
        True,
    ]

    def refuses(position: int, value: object, message: str) -> None:
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            ops.tgcn_layer(*good[:position], value, *good[position + 1 :])

    refuses(0, torch.randn(41, 3, 2), "x: expected a multiple of the graph's 20 nodes in dimension 0, got 41")
    refuses(2, torch.randn(3), r"edge_weight: expected a shape \[\d+\], got \[3\]")
    refuses(3, case.convs[:5], "conv_params: expected 2 times .* tensors, got 5")
    refuses(4, case.gates[:5], "gate_params: expected 6 tensors, got 5")
    refuses(4, [torch.randn(5, 11), *case.gates[1:]], "u.weight: expected 60 elements")
    refuses(5, 0, "conv_layers: expected at least 1, got 0")


def test_compiles_without_graph_break_for_any_size() -> None:
    case = make((1, 3, 2, 5))

    def run(x: Tensor, *params: Tensor) -> Tensor:
        convs, gates = list(params[:14]), list(params[14:])
        return ops.tgcn_layer(x, case.csr, case.edge_weight, convs, gates, *case.flags, False).mul(2)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for copies in (1, 3):
        x = torch.randn(20 * copies, 3, 2)
        assert torch.equal(compiled(x, *case.convs, *case.gates), run(x, *case.convs, *case.gates))


def test_functional_takes_the_same_way() -> None:
    edge_index, weight = stock_graph(20, 80)
    case = make((1, 3, 2, 5))
    graph = Graph(edge_index, weight, 20)
    native = functional.tgcn_layer(case.x, graph, case.convs, case.gates, backend="native")
    assert_close(native, functional.tgcn_layer(case.x, graph, case.convs, case.gates, backend="reference"))
