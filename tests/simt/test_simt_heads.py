"""The CUDA kernels of the decision and of the loss, at their sizes and on special values."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hiermt import reference
from hiermt.native import dispatch
from hiermt.testing import assert_close
from simt.cases import Case, check, needs_harness, with_dtypes
from simt.harness import Simt
from support.calls import DTYPES
from support.problems import LOSSES, Maker, Problem

pytestmark = needs_harness


def heads(rows: int, hidden: int, features: int) -> Problem:
    return Maker(1).heads(rows, hidden, features, threshold=0.6)


def wide_rows(stride: int) -> Any:
    return lambda t: torch.nn.functional.pad(t, (0, stride - t.size(1)))[:, : t.size(1)] if t.dim() == 2 else t


# Every number of lanes a row, whole and partial warps and blocks, more rows than a block; rows apart, not aligned.
DECISIONS = [heads(37, 4, 3), heads(70, 7, 5), heads(600, 16, 8), heads(65, 256, 8), heads(20, 1000, 2)]
DECISIONS += [heads(50, 32, 6), heads(50, 50, 6), heads(37, 3, 2), heads(300, 1, 1), heads(70, 8, 5), heads(33, 27, 4)]
DECISIONS += [Case(heads(33, 16, 4), {"layout": wide_rows(stride)}) for stride in (400, 401)]


@with_dtypes(DECISIONS, len(DECISIONS))
def test_decision(case: Problem | Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("hidden", [16, 40])
def test_more_rows_than_the_device_holds_at_once(hidden: int) -> None:
    problem = heads(1900, hidden, 4)
    small = check(problem, environment={"HIERMT_SIMT_MULTIPROCESSORS": "1"}).tensors()
    assert all(torch.equal(one, other) for one, other in zip(small, check(problem).tensors(), strict=True))


def test_only_what_was_asked_for() -> None:
    arguments = heads(40, 16, 4).arguments
    with Simt():
        everything = dispatch.operator("decision", True)(*arguments, 0.6, 15)
        for wanted in range(15):
            found = dispatch.operator("decision", True)(*arguments, 0.6, wanted)
            for bit, index in ((1, 0), (1, 1), (2, 2), (4, 3), (8, 4)):
                one = found[index]
                assert torch.equal(one, everything[index]) if wanted & bit else one.numel() == 0


@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_and_ties(dtype: torch.dtype) -> None:
    special = [math.nan, math.inf, -math.inf, 0.0, 1.0, 200.0]
    grid = torch.tensor(list(itertools.product(special, repeat=4)), dtype=dtype)
    with Simt():
        found = dispatch.operator("decision_from_logits", True)(grid[:, :2], grid[:, 2:], 0.5)
    expected = reference.decision_from_logits(grid[:, :2], grid[:, 2:], 0.5)
    assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert_close(found[2], expected[2])


# Rows of a warp, of a block, one more, and of several blocks.
PROBLEMS = [
    Maker(1).loss(rows, name, masked, selected)
    for rows in (31, 257)
    for name, masked in (("all", True), ("plain", False))
    for selected in (False, True)
]


@with_dtypes(PROBLEMS, 4)
def test_loss(case: Problem, dtype: torch.dtype) -> None:
    check(case, dtype)


Losses = tuple[Tensor, ...]


def losses(arguments: Any, order: int = 0) -> tuple[Losses, Losses]:
    """The three losses, and the gradients of their sum."""
    leaves = [one.detach().requires_grad_() for one in arguments[:2]]
    with Simt({"HIERMT_SIMT_ORDER": str(order)}):
        found = dispatch.operator("multitask_loss", True)(*leaves, *arguments[2:])
        return tuple(one.detach() for one in found), torch.autograd.grad(sum(found), leaves)


def problem(rows: int, name: str) -> list[Any]:
    return list(Maker(1).loss(rows, name, True).arguments)


every_option = pytest.mark.parametrize("name", ["plain", "all"])


@pytest.mark.hostile("labels")
@every_option
def test_masked_rows_never_spread(name: str) -> None:
    args = problem(300, name)
    clean = losses(args)
    mask = args[4]
    args[1][~mask], args[3][~mask] = math.nan, -9
    found = losses(args)
    assert all(torch.equal(one, other) for one, other in zip(clean[0], found[0], strict=True))
    assert found[1][1].isfinite().all() and not found[1][1][~mask].any()


@every_option
def test_no_signal_no_row_and_no_class(name: str) -> None:
    args = problem(40, name)
    args[4] = torch.zeros(40, dtype=torch.bool)
    (_, _, direction), gradients = losses(args)
    assert direction == 0 and not gradients[1].any()
    total, signal, direction = losses(problem(0, name))[0]
    assert direction == 0 and total.isnan() == signal.isnan() == (name == "plain")
    args = problem(40, name)
    args[2] = args[2] + 7
    assert losses(args)[0][0].isnan()


def test_classes_that_weigh_nothing_give_zero() -> None:
    args = problem(40, "all")
    args[2] = torch.zeros(40, dtype=torch.int64)
    args[6:] = torch.tensor([0.0, 2.0], dtype=torch.float64), None, 0.1, 1.0
    (_, signal, direction), gradients = losses(args)
    assert signal == 0 and direction > 0
    assert not gradients[0].any() and gradients[1].isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_every_order_of_threads_gives_the_same_bits(name: str) -> None:
    first = losses(problem(1000, name))
    for order in (1, 2, 3):
        for one, other in zip(losses(problem(1000, name), order), first, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
