"""``hiermt::tgcn_layer`` over windows of one series: against its twin, and against the layer on copies of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_tgcn_layer import VARIANTS, Case, make
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


@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_same_bits_forward_and_same_gradients_as_copies(variant: tuple[int, bool, bool, bool]) -> None:
    case = make((1, DAYS, 4, 16), variant)
    found, expected = gradients(ops.tgcn_layer, case, True), gradients(copied, case, True)
    assert torch.equal(found[0], expected[0])
    for got, want in zip(found[1:], expected[1:], strict=True):
        assert_close(got, want, gradient=True)


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


def test_no_window_and_windows_of_no_day() -> None:
    case = make((1, DAYS, 4, 7))
    empty = gradients(ops.tgcn_layer, case, True, torch.zeros(0, dtype=torch.int64))
    assert empty[0].shape == (0, STEPS, 7) and not any(grad.any() for grad in empty[1:])
    leaves = (case.x, case.csr, case.edge_weight, case.convs, case.gates, *case.flags)
    assert not ops.tgcn_layer(*leaves, False, STARTS, 0).any()
