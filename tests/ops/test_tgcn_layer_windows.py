"""``hiermt::tgcn_layer`` over windows of one series: against its twin, and against the layer on copies of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_tgcn_layer import VARIANTS, Case, flags, make
from torch import Tensor

from hiermt import Windows, functional
from hiermt.graph import Graph
from hiermt.testing import assert_close, stock_graph
from support.single_convolutions import ops, reference

DAYS, STEPS = 12, 5
STARTS = torch.tensor([6, 0, 1, 1])


def gradients(run: Callable[..., Tensor], case: Case, sequence: bool, starts: Tensor = STARTS) -> list[Tensor]:
    """Output and the gradient of everything."""
    leaves = (case.x, case.csr, case.edge_weight, case.convs, case.gates, *case.flags, sequence)
    out = run(*leaves, starts, STEPS)
    cotangent = torch.cos(torch.arange(out.numel())).bfloat16().reshape(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, case.leaves(), cotangent)]


def copied(x: Tensor, *arguments: Any) -> Tensor:
    *others, starts, steps = arguments
    return ops.tgcn_layer(reference.gather_windows(x, starts, steps).flatten(0, 1), *others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_twin(variant: tuple[int, bool, bool, bool], sequence: bool, dtype: torch.dtype) -> None:
    case = make((1, DAYS, 4, 7), variant, dtype)
    found = gradients(ops.tgcn_layer, case, sequence)
    expected = gradients(reference.tgcn_layer, case.to(torch.float64), sequence)
    assert found[0].dtype == dtype and found[0].shape[0] == STARTS.numel() * 20
    for i, (got, want) in enumerate(zip(found, expected, strict=True)):
        assert_close(got, want, gradient=i > 0)


@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_same_bits_forward_and_same_gradients_as_copies(variant: tuple[int, bool, bool, bool]) -> None:
    case = make((1, DAYS, 4, 16), variant)
    found, expected = gradients(ops.tgcn_layer, case, True), gradients(copied, case, True)
    assert torch.equal(found[0], expected[0])
    for got, want in zip(found[1:], expected[1:], strict=True):
        assert_close(got, want, gradient=True)


@pytest.mark.parametrize("sequence", [True, False])
def test_opcheck(sequence: bool) -> None:
    case = make((1, DAYS, 2, 4))
    options = {**flags(case, sequence, True), "steps": STEPS}
    arguments = (case.x, case.csr, case.edge_weight, case.convs, case.gates, STARTS)
    torch.library.opcheck(torch.ops.hiermt.tgcn_layer, arguments, options)
    with torch.no_grad():
        out, h, saved, g = torch.ops.hiermt.tgcn_layer(*arguments, **options)
    plain = make((1, DAYS, 2, 4))
    weight = None if plain.edge_weight is None else plain.edge_weight.detach()
    convs, gates = [p.detach() for p in plain.convs], [p.detach() for p in plain.gates]
    inputs = (plain.x.detach(), plain.csr, weight, convs, gates, STARTS, out if sequence else h, saved, g)
    del options["save"]
    needs = {f"need_{name}": True for name in ("x", "conv", "gates", "edge_weight")}
    torch.library.opcheck(torch.ops.hiermt.tgcn_layer_backward, (torch.ones_like(out), *inputs), {**options, **needs})


def test_no_window_and_windows_of_no_day() -> None:
    case = make((1, DAYS, 4, 7))
    empty = gradients(ops.tgcn_layer, case, True, torch.zeros(0, dtype=torch.int64))
    assert empty[0].shape == (0, STEPS, 7) and not any(grad.any() for grad in empty[1:])
    leaves = (case.x, case.csr, case.edge_weight, case.convs, case.gates, *case.flags)
    assert not ops.tgcn_layer(*leaves, False, STARTS, 0).any()


def test_arguments_are_checked_before_anything_is_read() -> None:
    case = make((1, DAYS, 4, 7))
    leaves = (case.x, case.csr, case.edge_weight, case.convs, case.gates, *case.flags, True)
    for starts in ([DAYS - STEPS + 1], [-1]):
        with pytest.raises(IndexError, match="outside the days"):
            ops.tgcn_layer(*leaves, torch.tensor(starts), STEPS)
    with pytest.raises(RuntimeError, match="steps: expected a length"):
        ops.tgcn_layer(*leaves, STARTS, DAYS + 1)
    with pytest.raises(RuntimeError, match="starts: expected dtype Long"):
        ops.tgcn_layer(*leaves, STARTS.int(), STEPS)
    two = make((2, DAYS, 4, 7))
    with pytest.raises(RuntimeError, match=r"x: expected a shape \[20, D, 4\]"):
        ops.tgcn_layer(two.x, *leaves[1:], STARTS, STEPS)


def test_functional_takes_windows(backend: str) -> None:
    case = make((1, DAYS, 4, 7))
    graph = Graph(*stock_graph(20, 80), 20)
    windows = Windows(case.x, STARTS, STEPS)
    found = functional.tgcn_layer(windows, graph, case.convs, case.gates, backend=backend)
    expected = functional.tgcn_layer(windows.gather().flatten(0, 1), graph, case.convs, case.gates, backend=backend)
    assert_close(found, expected)
    with pytest.raises(ValueError, match="windows of 40 stocks, but the graph has 20 nodes"):
        functional.tgcn_layer(Windows(case.x.repeat(2, 1, 1), STARTS, STEPS), graph, case.convs, case.gates)
    windows = Windows(case.x, STARTS + DAYS, STEPS)
    with pytest.raises(IndexError, match="is outside"):
        functional.tgcn_layer(windows, graph, case.convs, case.gates, backend=backend)


def test_compiles_without_graph_break_for_any_size() -> None:
    case = make((1, DAYS, 4, 7))

    def run(x: Tensor, starts: Tensor, *params: Tensor) -> Tensor:
        convs, gates = list(params[:14]), list(params[14:])
        leaves = (x, case.csr, case.edge_weight, convs, gates, *case.flags, False)
        return ops.tgcn_layer(*leaves, starts, STEPS).mul(2)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for days, starts in ((DAYS, STARTS), (DAYS + 3, STARTS[:2])):
        x, params = torch.randn(20, days, 4), (*case.convs, *case.gates)
        assert torch.equal(compiled(x, starts, *params), run(x, starts, *params))
