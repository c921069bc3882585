"""The CUDA kernels of the loss and of the window gather, compiled for the host and held against the twins."""

from __future__ import annotations

import math

import pytest
import torch
from simt_cases import DTYPES
from simt_harness import compiler, run
from torch import Tensor

from hiermt import reference
from hiermt.testing import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++ on x86-64")

Losses = list[Tensor | None]


def problem(rows: int, dtype: torch.dtype) -> list[Tensor]:
    """Logits of both heads, their targets, the mask."""
    signal, direction = (2 * torch.randn(rows, 2)).to(dtype), (2 * torch.randn(rows, 2)).to(dtype)
    targets, directions = torch.randint(2, (rows,)), torch.randint(2, (rows,))
    return [signal, direction, targets, directions, targets == 1]


def forward(args: list[Tensor | None], order: int = 0) -> Losses:
    scalar = ((), args[0].dtype)
    integers = [args[0].size(0), args[4] is not None, 700]
    outputs = [scalar, scalar, scalar, ((), torch.int64)]
    return run("multitask_loss", args[0].dtype, integers, args, outputs, {"HIERMT_SIMT_ORDER": str(order)})


def backward(args: list[Tensor | None], count: int, weights: list[float | None]) -> Losses:
    dtype, rows = args[0].dtype, args[0].size(0)
    grads = [None if weight is None else torch.tensor(weight, dtype=dtype) for weight in weights]
    outputs = [((rows, 2), dtype)] * 2
    integers = [rows, args[4] is not None, 700]
    return run("multitask_loss_backward", dtype, integers, [*args, torch.tensor(count), *grads], outputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 31, 256, 257, 700])
@pytest.mark.parametrize("masked", [True, False])
def test_loss(rows: int, dtype: torch.dtype, masked: bool) -> None:
    args = problem(rows, dtype)
    if not masked:
        args[4] = None
    *losses, count = forward(args)
    exact = [arg.double().requires_grad_() for arg in args[:2]]
    expected = reference.multitask_loss(*exact, *args[2:], 0.7)
    for one, other in zip(losses, expected, strict=True):
        assert_close(one, other.detach())
    assert int(count) == (int(args[4].sum()) if masked else rows)
    for weights in ([1.0, None, None], [1.0, 0.5, -2.0], [None, None, 1.0]):
        loss = sum(weight * term for weight, term in zip(weights, expected, strict=True) if weight is not None)
        gradients = torch.autograd.grad(loss, exact, retain_graph=True, allow_unused=True)
        for one, other in zip(backward(args, int(count), weights), gradients, strict=True):
            assert_close(one, torch.zeros(rows, 2, dtype=torch.float64) if other is None else other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_rows_never_spread(dtype: torch.dtype) -> None:
    args = problem(300, dtype)
    clean = forward(args)
    mask = args[4]
    args[1][~mask], args[3][~mask] = math.nan, -9
    assert all(torch.equal(one, other) for one, other in zip(clean, forward(args), strict=True))
    _, gradient = backward(args, int(mask.sum()), [1.0, None, None])
    assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))
    assert gradient.isfinite().all()


def test_no_signal_no_row_and_no_class() -> None:
    args = problem(40, torch.float32)
    args[4] = torch.zeros(40, dtype=torch.bool)
    *_, direction, count = forward(args)
    assert direction == 0 and count == 0
    assert torch.equal(backward(args, 0, [1.0, 1.0, 1.0])[1], torch.zeros(40, 2))
    total, signal, direction, count = forward(problem(0, torch.float32))
    assert total.isnan() and signal.isnan() and direction == 0 and count == 0
    args = problem(40, torch.float32)
    args[2][7] = 2
    assert forward(args)[1].isnan()


def test_loss_is_the_same_in_every_order_of_threads() -> None:
    args = problem(1000, torch.float32)
    first = forward(args)
    for order in (1, 2, 3):
        assert all(torch.equal(one, other) for one, other in zip(first, forward(args, order), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(3, 4, 5, 3, 12), (1, 1, 1, 1, 1), (2, 3, 25, 13, 25), (0, 3, 2, 2, 4)], ids=str)
def test_gather(sizes: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    windows, stocks, steps, channels, days = sizes
    series = torch.randn(stocks, days + 2, channels).to(dtype)[:, :days]  # room between the stocks
    starts = torch.randint(days - steps + 1, (windows,))
    integers = [windows, stocks, steps, channels, days, series.stride(0)]
    shape = (windows, stocks, steps, channels)
    (found,) = run("gather_windows", dtype, integers, [series, starts], [(shape, dtype)])
    assert torch.equal(found, reference.gather_windows(series, starts, steps))


@pytest.mark.parametrize("start", [-1, 8, 2**62, -(2**63)])
def test_gather_reads_nothing_outside(start: int) -> None:
    series, starts = torch.randn(2, 12, 3), torch.tensor([1, start])
    integers = [2, 2, 5, 3, 12, series.stride(0)]
    (found,) = run("gather_windows", torch.float32, integers, [series, starts], [((2, 2, 5, 3), torch.float32)])
    assert torch.equal(found[0], series[:, 1:6])
    assert torch.equal(found[1], torch.zeros(2, 5, 3))
