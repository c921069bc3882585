"""``hiermt::gated_scan`` against its twin, float64 and its own promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hiermt.native import extension
from hiermt.testing import assert_close

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from support.single_convolutions import ops, reference


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


def test_only_what_is_asked_for_is_computed_and_kept() -> None:
    case = make(4, 3, 2, 5)
    with torch.no_grad():
        out, h, saved = torch.ops.hiermt.gated_scan(*case, None, **options(False, False))
    assert out.shape == (4, 5) and h.numel() == 0 and saved.numel() == 0
    for leaf in case.leaves():
        only = [value.detach() for value in case.leaves()]
        index = next(i for i, value in enumerate(case.leaves()) if value is leaf)
        only[index].requires_grad_()
        (grad,) = torch.autograd.grad(ops.gated_scan(*only[:3], only[3:], True).sum(), [only[index]])
        (want,) = torch.autograd.grad(reference.gated_scan(*only[:3], only[3:], True).sum(), [only[index]])
        assert_close(grad, want, gradient=True)


def test_arguments_are_checked_before_anything_is_read() -> None:
    case = [value.detach() for value in make(4, 3, 2, 5).leaves()]
    good = [*case[:3], case[3:], None]

    def refuses(position: int, value: object, message: str) -> None:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.hiermt.gated_scan(*good[:position], value, *good[position + 1 :], **options(True, False))

    refuses(0, torch.randn(4, 3), r"x: expected a shape \[N, T, F\], got \[4, 3\]")
    refuses(1, torch.randn(4, 2, 5), r"g: expected a shape \[4, 3, H\], got \[4, 2, 5\]")
    refuses(1, torch.randn(4, 3, 5).double(), "g: expected dtype Float, got Double")
    refuses(2, torch.randn(4, 6), r"h0: expected a shape \[4, 5\], got \[4, 6\]")
    refuses(3, case[3:8], "gates: expected 6 tensors, got 5")
    refuses(3, [torch.randn(5, 11), *case[4:]], r"u.weight: expected a shape \[5, 12\], got \[5, 11\]")
    refuses(0, torch.randn(4, 3, 2).half(), "got Half|expected dtype Half")


def options(sequence: bool, save: bool, steps: int = 0) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    return {"steps": steps, "sequence": sequence, "save": save, "tf32": False}


def backward_options(sequence: bool, steps: int = 0) -> dict[str, Any]:
    """Keyword arguments of its backward, which compute every gradient."""
    wanted = {f"need_{name}": True for name in ("x", "g", "h0", "gates")}
    return {"steps": steps, "sequence": sequence, "tf32": False, **wanted}
