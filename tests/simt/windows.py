"""Scans over windows of one series for the SIMT harness, forward and backward, against the float64 twin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hiermt.testing import assert_close
from simt.cases import assert_gradients
from simt.harness import run
from support.single_convolutions import reference

NAMES = ["x", "g", "h0", "u.weight", "u.bias", "r.weight", "r.bias", "c.weight", "c.bias"]


class WindowCase(NamedTuple):
    """Windows of `steps` days that start on `starts`; `last` asks for the gradient through the last state only."""

    hidden: int
    starts: tuple[int, ...] = (9, 0, 2, 2)
    stocks: int = 3
    days: int = 14
    steps: int = 4
    channels: int = 13
    last: bool = False
    initial: bool = False

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
    h0: Tensor | None

    def arguments(self, steps: int) -> tuple[list[int], list[Tensor | None]]:
        """Integers and inputs of the operator, for windows of so many steps."""
        (stocks, days, channels), hidden = self.x.shape, self.g.size(2)
        integers = [1, stocks, days, hidden, channels, 0, *self.x.stride(), self.starts.numel(), steps]
        return integers, [self.x, self.g, self.h0, *self.gates, self.starts]


def make_windows(case: WindowCase, dtype: torch.dtype) -> WindowProblem:
    """Random problem of a case."""
    generator = torch.Generator().manual_seed(case.hidden)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    columns = case.channels + 2 * case.hidden
    gates = [random(case.hidden, columns) * columns**-0.5 if i % 2 == 0 else random(case.hidden) for i in range(6)]
    x = random(case.stocks, case.channels, case.days).transpose(1, 2)
    g, starts = random(case.stocks, case.days, case.hidden), torch.tensor(case.starts).long()
    return WindowProblem(x, g, starts, gates, random(case.nodes, case.hidden) if case.initial else None)


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
    problem = make_windows(case, dtype) if problem is None else problem
    precision = dtype if precision is None else precision
    integers, inputs = problem.arguments(case.steps)
    sequence, state = ((case.nodes, case.steps, case.hidden), dtype), ((case.nodes, case.hidden), dtype)
    h, h_last, _ = run("gated_scan", dtype, integers, inputs, [sequence, state, None], environment)
    given = [problem.x, problem.g, problem.h0, *problem.gates]
    leaves = [None if t is None else t.double().detach().clone().requires_grad_() for t in given]
    x, g, h0, *gates = leaves
    expected = reference.gated_scan(x, g, h0, gates, True, problem.starts, case.steps)
    assert_close(h.double(), expected.detach(), dtype=precision)
    initial = torch.zeros(state[0], dtype=dtype) if problem.h0 is None else problem.h0
    assert torch.equal(h_last, h[:, -1] if case.steps else initial)
    (_, alone, _) = run("gated_scan", dtype, integers, inputs, [None, state, None], environment)
    assert torch.equal(alone, h_last)

    grad_h = torch.randn(sequence[0], generator=torch.Generator().manual_seed(2)).to(dtype)
    # T = 0: nothing depends on anything
    expected = expected + 0 * sum(leaf.sum() for leaf in leaves if leaf is not None)
    grads_in: list[Tensor | None] = [None, grad_h[:, -1].contiguous()] if case.last else [grad_h, None]
    value, cotangent = (expected[:, -1], grads_in[1]) if case.last else (expected, grad_h)
    wanted = [leaf for leaf in leaves if leaf is not None]
    truth = iter(torch.autograd.grad(value, wanted, cotangent.double()))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    outputs = [None if t is None else (tuple(t.shape), dtype if i < 3 else compute) for i, t in enumerate(leaves)]
    grads = run("gated_scan_backward", dtype, integers, [*inputs, h, None, *grads_in], outputs, environment)
    named = zip(NAMES, leaves, grads, strict=True)
    assert_gradients([(name, grad, next(truth)) for name, leaf, grad in named if leaf is not None], precision)
    return [h, h_last, *grads]
