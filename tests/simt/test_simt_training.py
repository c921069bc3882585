"""The CUDA kernels of the loss and of the window gather, compiled for the host and held against the twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hiermt import reference
from hiermt.testing import assert_close
from simt.cases import DTYPES
from simt.harness import compiler, run

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++ on x86-64")

Losses = list[Tensor | None]


def problem(rows: int, dtype: torch.dtype) -> list[Tensor]:
    """Logits of both heads, their targets, the mask."""
    signal, direction = (2 * torch.randn(rows, 2)).to(dtype), (2 * torch.randn(rows, 2)).to(dtype)
    targets, directions = torch.randint(2, (rows,)), torch.randint(2, (rows,))
    return [signal, direction, targets, directions, targets == 1]


# Class weights of both heads, label smoothing, gamma.
Options = tuple[Tensor | None, Tensor | None, float, float]
WEIGHTS = torch.tensor([0.25, 3.0], dtype=torch.float64), torch.tensor([1.5, 0.5], dtype=torch.float64)
PLAIN: Options = (None, None, 0.0, 0.0)
OPTIONS: list[Options] = [
    (*WEIGHTS, 0.0, 0.0),
    (None, WEIGHTS[1], 0.1, 0.0),
    (None, None, 0.0, 2.0),
    (*WEIGHTS, 0.2, 0.5),
]


def integers(args: list[Tensor | None], options: Options) -> list[int]:
    return [args[0].size(0), args[4] is not None, 700, round(1000 * options[2]), round(1000 * options[3])]


def forward(args: list[Tensor | None], order: int = 0, options: Options = PLAIN) -> Losses:
    scalar = ((), args[0].dtype)
    outputs = [scalar, scalar, scalar, ((2,), torch.float64)]
    inputs = [*args, *options[:2]]
    environment = {"HIERMT_SIMT_ORDER": str(order)}
    return run("multitask_loss", args[0].dtype, integers(args, options), inputs, outputs, environment)


def backward(args: list[Tensor | None], norms: Tensor, weights: list[float | None], options: Options = PLAIN) -> Losses:
    dtype, rows = args[0].dtype, args[0].size(0)
    grads = [None if weight is None else torch.tensor(weight, dtype=dtype) for weight in weights]
    inputs, outputs = [*args, *options[:2], norms, *grads], [((rows, 2), dtype)] * 2
    return run("multitask_loss_backward", dtype, integers(args, options), inputs, outputs)


def check(args: list[Tensor | None], options: Options) -> Tensor:
    """Losses and gradients against the twin in float64; returns the norms."""
    *losses, norms = forward(args, options=options)
    exact = [arg.double().requires_grad_() for arg in args[:2]]
    expected = reference.multitask_loss(*exact, *args[2:], 0.7, *options)
    for one, other in zip(losses, expected, strict=True):
        assert_close(one, other.detach())
    for weights in ([1.0, None, None], [1.0, 0.5, -2.0], [None, None, 1.0]):
        loss = sum(weight * term for weight, term in zip(weights, expected, strict=True) if weight is not None)
        gradients = torch.autograd.grad(loss, exact, retain_graph=True, allow_unused=True)
        for one, other in zip(backward(args, norms, weights, options), gradients, strict=True):
            assert_close(one, torch.zeros(*one.shape, dtype=torch.float64) if other is None else other)
    return norms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 31, 256, 257, 700])
@pytest.mark.parametrize("masked", [True, False])
def test_loss(rows: int, dtype: torch.dtype, masked: bool) -> None:
    args = problem(rows, dtype)
    if not masked:
        args[4] = None
    norms = check(args, PLAIN)
    assert norms.tolist() == [rows, int(args[4].sum()) if masked else rows]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 257, 700])
@pytest.mark.parametrize("options", OPTIONS, ids=["weights", "smoothing", "focal", "all"])
@pytest.mark.parametrize("masked", [True, False])
def test_loss_with_options(rows: int, dtype: torch.dtype, options: Options, masked: bool) -> None:
    args = problem(rows, dtype)
    if not masked:
        args[4] = None
    norms = check(args, options)
    counted = [(options[0], args[2], None), (options[1], args[3], args[4])]
    for norm, (weight, targets, mask) in zip(norms, counted, strict=True):
        rows_that_count = targets if mask is None else targets[mask]
        expected = float(rows_that_count.numel()) if weight is None else weight[rows_that_count].sum()
        torch.testing.assert_close(norm, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [PLAIN, OPTIONS[-1]], ids=["plain", "options"])
def test_masked_rows_never_spread(dtype: torch.dtype, options: Options) -> None:
    args = problem(300, dtype)
    clean = forward(args, options=options)
    mask = args[4]
    args[1][~mask], args[3][~mask] = math.nan, -9
    assert all(torch.equal(one, other) for one, other in zip(clean, forward(args, options=options), strict=True))
    _, gradient = backward(args, clean[3], [1.0, None, None], options)
    assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("options", [PLAIN, OPTIONS[-1]], ids=["plain", "options"])
def test_no_signal_no_row_and_no_class(options: Options) -> None:
    args = problem(40, torch.float32)
    args[4] = torch.zeros(40, dtype=torch.bool)
    *_, direction, norms = forward(args, options=options)
    assert direction == 0 and norms[1] == 0
    assert torch.equal(backward(args, norms, [1.0, 1.0, 1.0], options)[1], torch.zeros(40, 2))
    total, signal, direction, norms = forward(problem(0, torch.float32), options=options)
    assert direction == 0 and norms.tolist() == [0, 0]
    assert total.isnan() and signal.isnan() if options is PLAIN else total == signal == 0
    args = problem(40, torch.float32)
    args[2] = args[2] + 7
    assert forward(args, options=options)[0].isnan()


def test_classes_that_weigh_nothing_give_zero() -> None:
    args = problem(40, torch.float32)
    args[2] = torch.zeros(40, dtype=torch.int64)
    options = (torch.tensor([0.0, 2.0], dtype=torch.float64), None, 0.1, 1.0)
    _, signal, direction, norms = forward(args, options=options)
    assert signal == 0 and direction > 0
    gradients = backward(args, norms, [1.0, 1.0, 1.0], options)
    assert torch.equal(gradients[0], torch.zeros(40, 2)) and gradients[1].isfinite().all()


def test_loss_is_the_same_in_every_order_of_threads() -> None:
    args = problem(1000, torch.float32)
    for options in (PLAIN, OPTIONS[-1]):
        first = forward(args, options=options)
        for order in (1, 2, 3):
            again = forward(args, order, options)
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
