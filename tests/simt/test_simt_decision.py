"""The CUDA kernels of the decision, compiled for the host and held against the twin."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hiermt import reference
from hiermt.testing import assert_close
from simt.cases import DTYPES
from simt.harness import compiler, run

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++ on x86-64")

# rows, hidden, features, elements between rows: every number of lanes a row, whole and partial warps and blocks,
# aligned and not, more rows than a block.
SIZES = [
    *[(0, 16, 16, 16), (1, 16, 16, 16), (100, 16, 16, 16), (600, 16, 8, 16)],
    *[(37, 4, 3, 4), (37, 3, 2, 3), (70, 8, 5, 8), (70, 7, 5, 9), (33, 16, 4, 400), (33, 16, 4, 401)],
    *[(50, 32, 6, 32), (50, 50, 6, 50), (65, 256, 8, 256), (300, 1, 1, 1), (20, 1000, 2, 1000)],
]


def problem(rows: int, hidden: int, features: int, stride: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(features, hidden), (features,), (2, features), (2,), (2, features), (2,)]
    h = torch.randn(rows, stride).to(dtype)[:, :hidden]
    return [h, *(torch.randn(shape).to(dtype) / shape[-1] ** 0.5 for shape in shapes)]


def forward(
    args: list[Tensor], threshold: int, wanted: int = 15, environment: dict[str, str] | None = None
) -> list[Tensor | None]:
    h, dtype = args[0], args[0].dtype
    rows = h.size(0)
    outputs = [
        *[((rows, 2), dtype) if wanted & 1 else None] * 2,
        ((rows, 4), dtype) if wanted & 2 else None,
        ((rows,), torch.int64) if wanted & 4 else None,
        ((rows,), dtype) if wanted & 8 else None,
    ]
    integers = [rows, h.size(1), args[1].size(0), h.stride(0), threshold]
    return run("decision", dtype, integers, args, outputs, environment)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decision(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    args = problem(*size, dtype)
    signal, direction, probabilities, predictions, confidences = forward(args, 600)
    exact = reference.decision(*(arg.double() for arg in args), 0.6)
    assert_close(signal, exact[0])
    assert_close(direction, exact[1])
    rest = reference.decision_from_logits(signal, direction, 0.6)
    assert_close(probabilities, rest[0])
    assert torch.equal(predictions, rest[1])
    assert_close(confidences, rest[2])


@pytest.mark.parametrize("hidden", [16, 40])
def test_more_rows_than_the_device_holds_at_once(hidden: int) -> None:
    args = problem(1900, hidden, 4, hidden, torch.float32)
    small = forward(args, 500, environment={"HIERMT_SIMT_MULTIPROCESSORS": "1"})
    for one, other in zip(small, forward(args, 500), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wanted", range(16))
def test_only_what_was_asked_for(wanted: int) -> None:
    args = problem(40, 16, 4, 16, torch.float32)
    everything = forward(args, 500)
    for bit, index in ((1, 0), (1, 1), (2, 2), (4, 3), (8, 4)):
        found = forward(args, 500, wanted)[index]
        assert torch.equal(found, everything[index]) if wanted & bit else found is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_and_ties(dtype: torch.dtype) -> None:
    special = [math.nan, math.inf, -math.inf, 0.0, 1.0, 200.0]
    grid = torch.tensor(list(itertools.product(special, repeat=4)), dtype=dtype)
    signal, direction = grid[:, :2].contiguous(), grid[:, 2:].contiguous()
    rows = grid.size(0)
    outputs = [((rows, 4), dtype), ((rows,), torch.int64), ((rows,), dtype)]
    found = run("decision_from_logits", dtype, [rows, 500], [signal, direction], outputs)
    expected = reference.decision_from_logits(signal, direction, 0.5)
    assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert_close(found[2], expected[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decision_backward(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    args = problem(*size, dtype)
    rows, hidden, features, stride = size
    cotangents = [torch.randn(rows, 2).to(dtype) for _ in range(2)]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = [(features, hidden), (features,), (2, features), (2,), (2, features), (2,)]
    outputs = [((rows, hidden), dtype), *((shape, compute) for shape in shapes)]
    found = run("decision_backward", dtype, [rows, hidden, features, stride, 1], [*args, *cotangents], outputs)

    exact = [arg.double().requires_grad_() for arg in args]
    logits = reference.decision(*exact, 0.5)[:2]
    expected = torch.autograd.grad(logits, exact, [cotangent.double() for cotangent in cotangents])
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, gradient=True, scaled=True, dtype=dtype)

    alone = run(
        "decision_backward",
        dtype,
        [rows, hidden, features, stride, 0],
        [*args, *cotangents],
        [outputs[0], *[None] * 6],
    )
    assert torch.equal(alone[0], found[0])


def test_the_order_of_threads_changes_no_bit() -> None:
    args = problem(600, 16, 8, 16, torch.float32)
    first = forward(args, 500)
    for order in (1, 2):
        again = forward(args, 500, environment={"HIERMT_SIMT_ORDER": str(order)})
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
