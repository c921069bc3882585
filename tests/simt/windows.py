"""Scans over windows of one series for the SIMT harness, forward and backward, against the float64 twin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hiermt import reference
from hiermt.testing import assert_close
from simt.cases import assert_gradients
from simt.harness import run

NAMES = ["x", "g", "u.weight", "u.bias", "r.weight", "r.bias", "c.weight", "c.bias"]


class WindowCase(NamedTuple):
    """Windows of `steps` days that start on `starts`; `last` asks for the gradient through the last state only."""

    hidden: int
    starts: tuple[int, ...] = (9, 0, 2, 2)
    stocks: int = 3
    days: int = 14
    steps: int = 4
    channels: int = 13
    last: bool = False

    def __str__(self) -> str:
        starts = "many" if len(self.starts) > 6 else ".".join(map(str, self.starts))
        return "-".join(f"{name[:2]}{value}" for name, value in self._replace(starts=starts)._asdict().items())

    @property
    def nodes(self) -> int:
        return len(self.starts) * self.stocks


class WindowProblem(NamedTuple):
    """Inputs of a case; `x` is strided."""

    x: Tensor
    g: Tensor
    starts: Tensor
    gates: list[Tensor]


def make_windows(case: WindowCase, dtype: torch.dtype) -> WindowProblem:
    """Random problem of a case."""
    generator = torch.Generator().manual_seed(case.hidden)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    columns = case.channels + 2 * case.hidden
    gates = [random(case.hidden, columns) * columns**-0.5 if i % 2 == 0 else random(case.hidden) for i in range(6)]
    x = random(case.stocks, case.channels, case.days).transpose(1, 2)
    return WindowProblem(x, random(case.stocks, case.days, case.hidden), torch.tensor(case.starts).long(), gates)


def windows_both(
    case: WindowCase,
    dtype: torch.dtype,
    environment: dict[str, str] | None = None,
    precision: torch.dtype | None = None,
    problem: WindowProblem | None = None,
) -> list[Tensor | None]:
    """Forward and backward of the kernels, each asserted against the float64 twin; returns all of both.

    `precision` is the dtype whose tolerance holds, that of the tensors by default.
    """
    x, g, starts, gates = make_windows(case, dtype) if problem is None else problem
    precision = dtype if precision is None else precision
    integers = [len(case.starts), case.stocks, case.days, case.steps, case.hidden, case.channels, *x.stride()]
    inputs: list[Tensor | None] = [x, g, starts, *gates]
    sequence, state = ((case.nodes, case.steps, case.hidden), dtype), ((case.nodes, case.hidden), dtype)
    h, h_last = run("gated_scan_windows", dtype, integers, inputs, [sequence, state], environment)
    leaves = [t.double().detach().clone().requires_grad_() for t in (x, g, *gates)]
    expected = reference.gated_scan_windows(leaves[0], leaves[1], starts, case.steps, leaves[2:], True)
    assert_close(h.double(), expected.detach(), dtype=precision)
    assert torch.equal(h_last, h[:, -1] if case.steps else torch.zeros(state[0], dtype=dtype))
    (_, alone) = run("gated_scan_windows", dtype, integers, inputs, [None, state], environment)
    assert torch.equal(alone, h_last)

    grad_h = torch.randn(sequence[0], generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = expected + 0 * sum(leaf.sum() for leaf in leaves)  # T = 0: nothing depends on anything
    grads_in: list[Tensor | None] = [None, grad_h[:, -1].contiguous()] if case.last else [grad_h, None]
    value, cotangent = (expected[:, -1], grads_in[1]) if case.last else (expected, grad_h)
    truth = torch.autograd.grad(value, leaves, cotangent.double())
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    outputs = [(tuple(leaf.shape), dtype if i < 2 else compute) for i, leaf in enumerate(leaves)]
    arguments = [*inputs, h, *grads_in]
    grads = run("gated_scan_windows_backward", dtype, integers, arguments, outputs, environment)
    assert_gradients(list(zip(NAMES, grads, truth, strict=True)), precision)
    return [h, h_last, *grads]
