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
from hiermt.testing import assert_close, stock_graph

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from support.single_convolutions import ops, reference

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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4, -1e4])
@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_nan_infinity_and_saturation(variant: tuple[int, bool, bool, bool], value: float) -> None:
    case = make((2, 4, 3, 5), variant)
    with torch.no_grad():
        case.x[1, 1, 1] = value
    out, _ = gradients(ops.tgcn_layer, case, True)
    expected, _ = gradients(reference.tgcn_layer, case, True)
    assert_close(out, expected)


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
        _, *kept = torch.ops.hiermt.tgcn_layer(*arguments[:5], None, None, **flags(case, sequence, False))
    assert all(tensor.numel() == 0 for tensor in kept)


def test_eager_and_registered_rules_agree() -> None:
    case = make((2, 5, 3, 4))

    def registered(*arguments: Any) -> Tensor:
        return torch.ops.hiermt.tgcn_layer(*arguments[:5], None, None, **flags(case, True, True))[0]  # type: ignore[no-any-return]

    eager, direct = gradients(ops.tgcn_layer, case, True), gradients(registered, case, True)
    assert torch.equal(eager[0], direct[0])
    assert all(torch.equal(a, b) for a, b in zip(eager[1], direct[1], strict=True))


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


def test_functional_takes_the_same_way() -> None:
    edge_index, weight = stock_graph(20, 80)
    case = make((1, 3, 2, 5))
    graph = Graph(edge_index, weight, 20)
    native = functional.tgcn_layer(case.x, graph, case.convs, case.gates, backend="native")
    assert_close(native, functional.tgcn_layer(case.x, graph, case.convs, case.gates, backend="reference"))


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_starts_from_a_given_state(variant: tuple[int, bool, bool, bool], windows: bool, sequence: bool) -> None:
    case = make((1, 9, 4, 7), variant, torch.float64)
    span = (torch.tensor([4, 0, 0]), 5) if windows else (None, 0)
    h0 = torch.randn(60 if windows else 20, 7).double().requires_grad_()
    arguments = (case.x, case.csr, case.edge_weight, case.convs, case.gates, *case.flags, sequence, *span, h0)
    outs = [module.tgcn_layer(*arguments) for module in (ops, reference)]
    assert_close(*outs)
    grads = [torch.autograd.grad(out.sin().sum(), [*case.leaves(), h0]) for out in outs]
    for got, want in zip(*grads, strict=True):
        assert_close(got, want, gradient=True)
