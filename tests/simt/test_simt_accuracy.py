"""Float32 on tensor cores is as accurate as PyTorch's float32: each result against float64, by its norm."""

from __future__ import annotations

import math

import pytest
import torch

from simt.cases import GCN, Case, conv, layer, needs_harness, scan, windows, with_mask
from simt.harness import Simt
from support.calls import run
from support.problems import Problem

pytestmark = needs_harness

CASES = [
    layer(16, nodes=20, edges=90, copies=2, steps=12),
    layer(16, nodes=20, edges=90, copies=2, steps=12, channels=16),
    layer(40, nodes=20, edges=90, steps=12, channels=50),
    layer(16, nodes=20, edges=90, steps=12, stack=GCN),
    conv(40, nodes=20, edges=90, steps=12),
    scan(16, nodes=40, steps=12),
    windows(16, starts=range(30), days=42, steps=12),
    with_mask(layer(16, nodes=20, edges=90, steps=12)),
]


# Draws of the cotangents: the error of one, PyTorch's above all, varies by a factor of ten where a sum cancels.
DRAWS = 3


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_error_is_at_most_twice_that_of_pytorch(case: Problem | Case) -> None:
    problem, how = (case.problem, case.how) if isinstance(case, Case) else (case, {})
    squares: dict[int, list[tuple[float, float, float]]] = {}
    for draw in range(DRAWS):
        with Simt():
            found = run(problem, True, draw=draw, **how).tensors()
        expected = run(problem, False, torch.float64, draw=draw, **how).tensors()
        plain = run(problem, False, draw=draw, **how).tensors()
        for i, (ours, theirs, exact) in enumerate(zip(found, plain, expected, strict=True)):
            if ours is None or theirs is None or exact is None or not ours.is_floating_point():
                continue
            error, allowed = (float((one.double() - exact).square().sum()) for one in (ours, theirs))
            # Half a unit in the last place is no error; that of a vector is the noise of few numbers.
            allowed = max(allowed, 2.0**-48 * float(exact.square().sum()))
            squares.setdefault(i, []).append((error, allowed, exact.numel()))
    assert len(squares) > 3
    for i, draws in squares.items():
        errors, allowed, numel = (sum(column) for column in zip(*draws, strict=True))
        limit = 2 if numel >= 200 * DRAWS else 3
        assert math.sqrt(errors) <= limit * math.sqrt(allowed), f"result {i}"
