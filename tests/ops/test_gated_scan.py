"""``hiermt::gated_scan`` against its twin, float64 and its own promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hiermt import functional, reference
from hiermt.native import extension
from hiermt.testing import assert_close
from support.native_checks import STRIDES, assert_as_exact_as_the_twin, assert_same_bits, strided

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from hiermt import ops

# N, T, F, H: full tiles, remainders of nodes, channels on both sides of every vector width, one of everything.
SHAPES = [
    (16, 6, 13, 16),
    (3, 4, 5, 3),
    (9, 3, 1, 1),
    (1, 1, 2, 5),
    (21, 9, 8, 8),
    (10, 17, 33, 17),
    (8, 3, 64, 32),
    (5, 2, 7, 65),
]


class Case(NamedTuple):
    x: Tensor
    g: Tensor
    h0: Tensor | None
    gates: list[Tensor]

    def leaves(self) -> list[Tensor]:
        return [self.x, self.g, *([] if self.h0 is None else [self.h0]), *self.gates]

    def to(self, dtype: torch.dtype) -> Case:
        def copy(value: Tensor) -> Tensor:
            return value.detach().to(dtype).requires_grad_()

        return Case(
            copy(self.x), copy(self.g), None if self.h0 is None else copy(self.h0), [copy(gate) for gate in self.gates]
        )


def make(n: int, t: int, f: int, h: int, dtype: torch.dtype = torch.float32, state: bool = True) -> Case:
    scale = 2 / (f + 2 * h) ** 0.5
    gates = [torch.randn(h, f + 2 * h) * scale if i % 2 == 0 else torch.randn(h) * 0.3 for i in range(6)]
    case = Case(torch.randn(n, t, f), torch.rand(n, t, h), torch.randn(n, h) * 0.5 if state else None, gates)
    return case.to(dtype)


def gradients(run: Callable[..., Tensor], case: Case, sequence: bool) -> tuple[Tensor, list[Tensor]]:
    """Output and the gradient of everything, under a cotangent that is the same for every implementation."""
    out = run(*case, sequence)
    cotangent = torch.cos(torch.arange(out.numel())).bfloat16().reshape(out.shape).to(out.dtype)
    return out, list(torch.autograd.grad(out, case.leaves(), cotangent))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_twin(shape: tuple[int, int, int, int], sequence: bool, dtype: torch.dtype) -> None:
    case = make(*shape, dtype=dtype, state=sequence)
    wide = case.to(torch.float64)
    out, grads = gradients(ops.gated_scan, case, sequence)
    expected, expected_grads = gradients(reference.gated_scan, wide, sequence)
    assert out.dtype == dtype
    assert_close(out, expected)
    for got, want, leaf in zip(grads, expected_grads, case.leaves(), strict=True):
        assert got.shape == leaf.shape and got.dtype == leaf.dtype
        assert_close(got, want, gradient=True)


def test_error_is_at_most_twice_the_twins() -> None:
    """In float32 against float64, at the size that users have."""
    case = make(400, 25, 13, 16)
    exact = gradients(reference.gated_scan, case.to(torch.float64), True)
    native, twin = (gradients(run, case, True) for run in (ops.gated_scan, reference.gated_scan))
    assert_as_exact_as_the_twin(native, twin, exact)


@pytest.mark.parametrize("sequence", [True, False])
def test_gradcheck(sequence: bool) -> None:
    case = make(3, 4, 2, 3, torch.float64)

    def run(x: Tensor, g: Tensor, h0: Tensor, *gates: Tensor) -> Tensor:
        return ops.gated_scan(x, g, h0, gates, sequence)

    assert torch.autograd.gradcheck(run, case.leaves())


@pytest.mark.parametrize("kind", STRIDES)
def test_any_strides_of_x(kind: str) -> None:
    view, dense = strided(kind, 9, 5, 4)
    case = make(9, 5, 4, 6)
    outs = [gradients(ops.gated_scan, case._replace(x=x.detach().requires_grad_()), True) for x in (view, dense)]
    assert torch.equal(outs[0][0], outs[1][0])
    for a, b in zip(outs[0][1], outs[1][1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sequence", [True, False])
def test_incoming_gradients_of_any_strides(sequence: bool) -> None:
    case = make(9, 5, 4, 6)
    out = ops.gated_scan(*case, sequence)
    expanded = torch.ones(()).expand(out.shape)
    reversed_ = torch.randn(out.shape[::-1]).permute(*reversed(range(out.dim())))
    for cotangent in (expanded, reversed_):
        got = torch.autograd.grad(out, case.leaves(), cotangent, retain_graph=True)
        want = torch.autograd.grad(out, case.leaves(), cotangent.contiguous(), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize(("n", "t"), [(0, 4), (3, 0), (0, 0)])
def test_empty(n: int, t: int, sequence: bool) -> None:
    """Without a step the last state is the first one; everything else is empty or zero."""
    case = make(n, t, 2, 3)
    out, grads = gradients(ops.gated_scan, case, sequence)
    assert out.shape == reference.gated_scan(*case, sequence).shape
    state = out.detach() * 0 if sequence or t else case.h0
    if not sequence:
        assert torch.equal(out, state)
    for got, leaf in zip(grads, case.leaves(), strict=True):
        assert got.shape == leaf.shape
        if leaf is case.h0 and not sequence and not t:
            assert torch.equal(got, torch.cos(torch.arange(n * 3)).bfloat16().reshape(n, 3).float())
        else:
            assert not got.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e4, -1e4, 3e38])
@pytest.mark.parametrize("where", ["x", "g", "h0", "weight", "bias"])
def test_nan_infinity_and_saturation(where: str, value: float) -> None:
    case = make(10, 4, 3, 5)
    target = {"x": case.x, "g": case.g, "h0": case.h0, "weight": case.gates[0], "bias": case.gates[5]}[where]
    assert target is not None
    with torch.no_grad():
        target[(1,) * target.dim()] = value
    out, grads = gradients(ops.gated_scan, case, True)
    expected, expected_grads = gradients(reference.gated_scan, case, True)
    assert_close(out, expected)
    for got, want in zip(grads, expected_grads, strict=True):
        # Sums with opposite infinities or huge terms depend on their order; where a sum is finite, so is ours.
        finite = want.isfinite() & (want.abs() < 1e4)
        assert_close(got[finite], want[finite], gradient=True)
        assert torch.equal(got.isnan() | got.isinf(), want.isnan() | want.isinf()) or value == 3e38


def test_same_bits_alone_and_among_others() -> None:
    """A node's numbers depend on its own inputs alone, whatever tile it falls into."""
    case = make(19, 6, 5, 7)
    out, grads = gradients(ops.gated_scan, case, True)
    for first, last in ((0, 8), (3, 4), (8, 19), (17, 19)):
        x, g, h0 = (v[first:last].detach().requires_grad_() for v in (case.x, case.g, case.h0) if v is not None)
        part = ops.gated_scan(x, g, h0, case.gates, True)
        assert torch.equal(part, out[first:last])
        cotangent = torch.cos(torch.arange(out.numel())).bfloat16().reshape(out.shape).float()[first:last]
        got = torch.autograd.grad(part, [x, g, h0], cotangent)
        assert all(torch.equal(a, b[first:last]) for a, b in zip(got, grads[:3], strict=True))


def test_same_bits_for_any_thread_count_and_run() -> None:
    case = make(700, 5, 4, 16)
    assert_same_bits(lambda: gradients(ops.gated_scan, case, True))


def test_only_what_is_asked_for_is_computed_and_kept() -> None:
    case = make(4, 3, 2, 5)
    with torch.no_grad():
        out, h, saved = torch.ops.hiermt.gated_scan(*case, False, False)
    assert out.shape == (4, 5) and h.numel() == 0 and saved.numel() == 0
    for leaf in case.leaves():
        only = [value.detach() for value in case.leaves()]
        index = next(i for i, value in enumerate(case.leaves()) if value is leaf)
        only[index].requires_grad_()
        (grad,) = torch.autograd.grad(ops.gated_scan(*only[:3], only[3:], True).sum(), [only[index]])
        (want,) = torch.autograd.grad(reference.gated_scan(*only[:3], only[3:], True).sum(), [only[index]])
        assert_close(grad, want, gradient=True)


@pytest.mark.parametrize("sequence", [True, False])
def test_opcheck(sequence: bool) -> None:
    case = make(5, 3, 2, 4)
    torch.library.opcheck(torch.ops.hiermt.gated_scan, (*case, sequence, True))
    plain = [value.detach() for value in case.leaves()]
    out, h, saved = torch.ops.hiermt.gated_scan(*plain[:3], plain[3:], sequence, True)
    states = out if sequence else h
    torch.library.opcheck(
        torch.ops.hiermt.gated_scan_backward,
        (torch.ones_like(out), *plain[:3], plain[3:], sequence, states, saved, True, True, True, True),
    )


def test_double_backward_is_refused_by_name() -> None:
    case = make(3, 2, 2, 3)
    (grad,) = torch.autograd.grad(ops.gated_scan(*case, True).sum(), [case.x], create_graph=True)
    with pytest.raises(NotImplementedError, match="gated_scan"):
        grad.sum().backward()


def test_autocast() -> None:
    case = make(9, 4, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.gated_scan(*case, True)
    assert out.dtype == torch.bfloat16
    assert_close(out, reference.gated_scan(*case, True))
    out.float().sum().backward()
    assert case.x.grad is not None and case.x.grad.dtype == torch.float32


def test_arguments_are_checked_before_anything_is_read() -> None:
    case = [value.detach() for value in make(4, 3, 2, 5).leaves()]
    good = [*case[:3], case[3:], True, False]

    def refuses(position: int, value: object, message: str) -> None:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.hiermt.gated_scan(*good[:position], value, *good[position + 1 :])

    refuses(0, torch.randn(4, 3), r"x: expected a shape \[N, T, F\], got \[4, 3\]")
    refuses(1, torch.randn(4, 2, 5), r"g: expected a shape \[4, 3, H\], got \[4, 2, 5\]")
    refuses(1, torch.randn(4, 3, 5).double(), "g: expected dtype Float, got Double")
    refuses(2, torch.randn(4, 6), r"h0: expected a shape \[4, 5\], got \[4, 6\]")
    refuses(3, case[3:8], "gates: expected 6 tensors, got 5")
    refuses(3, [torch.randn(5, 11), *case[4:]], r"u.weight: expected a shape \[5, 12\], got \[5, 11\]")
    refuses(0, torch.randn(4, 3, 2).half(), "got Half|expected dtype Half")


def test_compiles_without_graph_break_for_any_size() -> None:
    def run(x: Tensor, g: Tensor, *gates: Tensor) -> Tensor:
        return functional.gated_scan(x, g, None, gates, backend="native").mul(2)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (4, 7):
        case = make(n, 3, 2, 5, state=False)
        assert torch.equal(compiled(case.x, case.g, *case.gates), run(case.x, case.g, *case.gates))
