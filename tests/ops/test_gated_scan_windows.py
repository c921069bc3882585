"""``hiermt::gated_scan_windows`` against its twin, against the scan of gathered windows, and its own promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hiermt import functional
from hiermt.native import extension
from hiermt.testing import assert_close

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from test_gated_scan import options

from support.single_convolutions import ops, reference


class Case(NamedTuple):
    x: Tensor
    g: Tensor
    starts: Tensor
    steps: int
    gates: list[Tensor]

    def leaves(self) -> list[Tensor]:
        return [self.x, self.g, *self.gates]

    def to(self, dtype: torch.dtype) -> Case:
        def copy(value: Tensor) -> Tensor:
            return value.detach().to(dtype).requires_grad_()

        return Case(copy(self.x), copy(self.g), self.starts, self.steps, [copy(gate) for gate in self.gates])


# S, D, T, F, H and first days: overlapping, apart, the same twice, in any order; many groups of windows over one tile
# of nodes, and one group over many; more days than are taken together; channels on both sides of every vector width.
CASES = {
    "shuffled": (9, 40, 7, 13, 16, [30, 2, 3, 4, 2, 20, 21, 5, 33]),
    "apart": (3, 40, 5, 4, 3, [0, 12, 35]),
    "one window": (10, 6, 6, 5, 8, [0]),
    "one day": (5, 9, 1, 2, 5, [8, 0, 0, 3]),
    "many groups": (8, 60, 4, 3, 17, list(range(0, 57, 2))),
    "many tiles": (203, 12, 5, 6, 4, [1, 7, 3]),
    "long": (2, 170, 90, 3, 33, [0, 40, 80, 1]),
    "wide": (3, 12, 4, 35, 65, [0, 3, 8]),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> Case:
    stocks, days, steps, channels, hidden, starts = CASES[name]
    scale = 2 / (channels + 2 * hidden) ** 0.5
    gates = [
        torch.randn(hidden, channels + 2 * hidden) * scale if i % 2 == 0 else torch.randn(hidden) * 0.3
        for i in range(6)
    ]
    x, g = torch.randn(stocks, days, channels), torch.rand(stocks, days, hidden)
    return Case(x, g, torch.tensor(starts), steps, gates).to(dtype)


def gathered(x: Tensor, g: Tensor, starts: Tensor, steps: int, gates: list[Tensor], sequence: bool) -> Tensor:
    """The scan that shares nothing."""
    windows = [reference.gather_windows(part, starts, steps).flatten(0, 1) for part in (x, g)]
    return ops.gated_scan(*windows, None, gates, sequence)


def gradients(run: Callable[..., Tensor], case: Case, sequence: bool) -> tuple[Tensor, list[Tensor]]:
    """Output and the gradient of everything, under a cotangent that is the same for every implementation."""
    out = run(*case, sequence)
    cotangent = torch.cos(torch.arange(out.numel())).bfloat16().reshape(out.shape).to(out.dtype)
    return out, list(torch.autograd.grad(out, case.leaves(), cotangent))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_same_bits_forward_and_same_gradients_as_windows_one_by_one(name: str, dtype: torch.dtype) -> None:
    case = make(name, dtype)
    out, grads = gradients(ops.gated_scan_windows, case, True)
    expected, expected_grads = gradients(gathered, case, True)
    assert torch.equal(out, expected)
    for got, want in zip(grads, expected_grads, strict=True):
        assert_close(got, want, gradient=True)


def test_a_day_of_no_window_counts_for_nothing() -> None:
    case = make("apart")
    clean, clean_grads = gradients(ops.gated_scan_windows, case, True)
    unused = torch.ones(case.x.size(1), dtype=torch.bool)
    for start in case.starts.tolist():
        unused[start : start + case.steps] = False
    assert unused.any()
    with torch.no_grad():
        case.x[:, unused] = float("nan")
        case.g[:, unused] = float("inf")
    out, grads = gradients(ops.gated_scan_windows, case, True)
    assert torch.equal(out, clean)
    assert all(torch.equal(a, b) for a, b in zip(grads, clean_grads, strict=True))
    assert not grads[0][:, unused].any() and not grads[1][:, unused].any()


@pytest.mark.parametrize("where", ["x", "g", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4])
def test_nan_infinity_and_saturation(where: str, value: float) -> None:
    case = make("shuffled")
    with torch.no_grad():
        {"x": case.x, "g": case.g, "weight": case.gates[0]}[where][(3,) * (2 if where == "weight" else 3)] = value
    out, _ = gradients(ops.gated_scan_windows, case, True)
    expected, _ = gradients(reference.gated_scan_windows, case, True)
    assert_close(out, expected)
    assert torch.equal(out.isnan(), expected.isnan())


def test_only_what_is_asked_for_is_computed_and_kept() -> None:
    case = make("apart")
    with torch.no_grad():
        out, h, saved = call(case, None, False, False)
    assert out.shape == (9, 3) and h.numel() == 0 and saved.numel() == 0
    _, every = gradients(ops.gated_scan_windows, case, True)
    for index in range(len(every)):
        only = [value.detach() for value in case.leaves()]
        only[index].requires_grad_()
        alone = ops.gated_scan_windows(*only[:2], case.starts, case.steps, only[2:], True)
        cotangent = torch.cos(torch.arange(alone.numel())).bfloat16().reshape(alone.shape).float()
        assert torch.equal(torch.autograd.grad(alone, [only[index]], cotangent)[0], every[index])


def test_autocast(backend: str) -> None:
    case = make("apart")
    with torch.autocast("cpu", torch.bfloat16):
        out = functional.gated_scan_windows(*case, backend=backend)
    assert out.dtype == torch.bfloat16
    assert_close(out, reference.gated_scan_windows(*case, True))
    out.float().sum().backward()
    assert case.x.grad is not None and case.x.grad.dtype == torch.float32


def test_arguments_are_checked(backend: str) -> None:
    case = make("apart")

    def refuses(error: type[Exception], message: str, **changes: object) -> None:
        with pytest.raises(error, match=message):
            functional.gated_scan_windows(*case._replace(**changes), backend=backend)

    refuses(IndexError, "36 is outside", starts=torch.tensor([0, 36]))
    refuses(IndexError, "-1 is outside", starts=torch.tensor([0, -1]))
    refuses(TypeError, "starts: expected int64", starts=torch.tensor([0.0]))
    refuses(ValueError, "starts: expected a vector", starts=torch.tensor([[0]]))
    refuses(ValueError, "steps: expected a length", steps=41)
    refuses(ValueError, r"g: expected \[S, D, H\] = \[3, 40, 3\]", g=case.g[:, :-1])
    refuses(ValueError, "u.weight has 10 input channels", x=torch.randn(3, 40, 5))
    refuses(TypeError, "parameter torch.float64", g=case.g.double())


def test_the_operator_checks_again() -> None:
    x, g, starts, steps, gates = make("apart")
    good = [x.detach(), g.detach(), None, [gate.detach() for gate in gates], starts]
    for position, value, message in (
        (0, torch.randn(3, 40), r"x: expected a shape \[N, T, F\]"),
        (1, torch.randn(3, 39, 3), r"g: expected a shape \[3, 40, H\]"),
        (2, torch.randn(3, 3), r"h0: expected a shape \[9, 3\]"),
        (3, gates[:5], "gates: expected 6 tensors"),
        (4, torch.tensor([36]), "outside the days"),
        (4, torch.tensor([0], dtype=torch.int32), "starts: expected dtype Long"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.hiermt.gated_scan(*good[:position], value, *good[position + 1 :], **options(True, False, steps))
    with pytest.raises(RuntimeError, match="steps: expected a length"):
        torch.ops.hiermt.gated_scan(*good, **options(True, False, 41))


def call(case: Case, h0: Tensor | None, sequence: bool, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, g, starts, steps, gates = case
    return torch.ops.hiermt.gated_scan(x, g, h0, gates, starts, **options(sequence, save, steps))  # type: ignore[no-any-return]


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("name", ["shuffled", "apart", "many groups", "many tiles"])
def test_each_window_starts_from_its_own_state(name: str, sequence: bool) -> None:
    case = make(name, torch.float64)
    h0 = torch.randn(case.starts.numel() * case.x.size(0), case.g.size(2)).double().requires_grad_()
    windows = [reference.gather_windows(part, case.starts, case.steps).flatten(0, 1) for part in (case.x, case.g)]
    outs = [
        ops.gated_scan(case.x, case.g, h0, case.gates, sequence, case.starts, case.steps),
        ops.gated_scan(*windows, h0, case.gates, sequence),
        reference.gated_scan(case.x, case.g, h0, case.gates, sequence, case.starts, case.steps),
    ]
    assert torch.equal(outs[0], outs[1])
    assert_close(outs[0], outs[2])
    grads = [torch.autograd.grad(out.sin().sum(), [*case.leaves(), h0]) for out in outs]
    assert torch.equal(grads[0][-1], grads[1][-1])
    for got, want in zip(grads[0], grads[2], strict=True):
        assert_close(got, want, gradient=True)
