"""Stocks that come and go on the CUDA kernels: every convolution and scan with a mask, against the twin."""

from __future__ import annotations

import pytest
import torch

from simt.cases import (
    GCN,
    LITTLE,
    ONE_GCN,
    Case,
    bits,
    check,
    constant_edges,
    conv,
    launches,
    layer,
    needs_harness,
    scan,
    windows,
    with_dtypes,
    with_mask,
    without_room,
)
from support.calls import LAYOUTS
from support.present import masks
from support.problems import Problem, Stack

pytestmark = [needs_harness, pytest.mark.hostile("absent")]

STRIDED = {"layout": LAYOUTS["step"]}
BARE = Stack(1, edge=False)


# Every width that a kernel has a way of its own for, in each dtype.
WIDTHS = [
    problem
    for stack in (Stack(1), ONE_GCN)
    for problem in (
        conv(16, stack=stack),
        conv(8, copies=2, stack=stack, activation=3),
        conv(32, steps=3, stack=stack, activation=2),
        conv(64, steps=2, channels=5, stack=stack),
        conv(5, stack=stack, activation=0),
    )
]
SCANS = [
    scan(16),
    scan(8, nodes=9, state=True),
    scan(32, channels=1, sequence=False),
    scan(64, nodes=2, steps=2),
    scan(40, nodes=3, steps=2, state=True, sequence=False),
    windows(16),
    windows(8, channels=1, sequence=False),
    windows(32, starts=(0, 7, 3), steps=7),
    windows(64, starts=(2, 0), days=4, steps=2, stocks=1),
    windows(40, starts=(3, 0, 1), days=8, stocks=2, channels=3, state=True, sequence=False),
]


# Each is a kernel of its own in each dtype; small, since the harness needs seconds for 64 channels.
@with_dtypes([with_mask(problem) for problem in WIDTHS + SCANS], len(WIDTHS + SCANS))
def test_every_width(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


OTHERS = [
    scan(32, channels=2, state=True, convolved=False),
    windows(16, channels=2, convolved=False),
    conv(16, stack=BARE),
    conv(16, stack=Stack()),
    conv(16, stack=GCN),
    conv(100, steps=2, channels=40, activation=0),
    conv(256, steps=1, nodes=6, edges=10, stack=ONE_GCN),
    conv(16, nodes=50, edges=600, steps=1),
    conv(16, nodes=50, edges=600, steps=1, stack=ONE_GCN),
    conv(8, nodes=5, edges=0),
    Case(conv(16, stack=ONE_GCN), STRIDED),
    Case(windows(16, starts=(13, 0, 0, 5), steps=1), STRIDED),
    # Enough rows that a block of the target kernel has several tiles.
    conv(8, nodes=40, edges=90, copies=30, steps=60, channels=3),
    layer(16, copies=2),
    layer(16, copies=2, stack=GCN, state=True),
    layer(8, stack=Stack(1, edge=False, between=False), sequence=False),
    layer(64, steps=2, nodes=5, edges=9, stack=Stack(2, False, between=False)),
    constant_edges(layer(16)),
    layer(16, steps=9, starts=(2, 0, 5), window=4),
    layer(5, steps=6, stack=GCN, starts=(2, 1, 0), window=3, state=True, sequence=False),
]


# What the kernels of whole stacks have a way of their own for: lanes of an item, steps of a block, tasks of a block.
STACKS = [
    layer(32, nodes=7, edges=30, steps=2, channels=35),
    layer(8, copies=2),
    constant_edges(layer(8, nodes=3, edges=4, copies=140, steps=3, channels=17)),
    constant_edges(layer(16, nodes=40, edges=90, copies=3, steps=6, channels=20, stack=Stack(3))),
    layer(16, nodes=3, edges=4, copies=300, steps=2, channels=2),
    constant_edges(layer(32, nodes=5, edges=12, copies=140, steps=2, channels=35)),
    layer(64, nodes=5, edges=20, steps=2),
    constant_edges(layer(64, nodes=21, edges=100, steps=3, channels=64, stack=Stack(3))),
    layer(64, nodes=3, edges=4, copies=140, steps=2, channels=2, stack=Stack(2, between=False)),
    layer(64, nodes=5, edges=12, copies=140, steps=2, stack=GCN),
    layer(32, nodes=5, edges=12, copies=140, steps=2, stack=GCN, sequence=False),
    layer(16, nodes=1, edges=0),
    layer(16, nodes=5, edges=0, stack=GCN),
    layer(64, nodes=5, edges=8, steps=6, starts=(2, 0), window=3),
]


@with_dtypes([with_mask(problem) for problem in STACKS], 2)
def test_every_stack(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("case", [with_mask(problem) for problem in OTHERS], ids=str)
def test_every_part(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("kind", [kind for kind in masks(2, 2) if kind != "random"])
@pytest.mark.parametrize(
    "problem",
    [layer(16, copies=2), layer(16, stack=GCN), layer(16, steps=9, starts=(2, 0, 5), window=4, state=True)],
    ids=str,
)
def test_every_mask(problem: Problem, kind: str) -> None:
    check(with_mask(problem, kind))


@without_room
def test_scan_without_room_for_the_weights_in_shared_memory(
    problem: Problem, dtype: torch.dtype, environment: dict[str, str]
) -> None:
    check(with_mask(problem), dtype, environment)


# Without room for a stack in one launch the backward is dense, and computes the first convolution again.
PAIRS = [
    with_mask(conv(hidden, nodes=5, edges=8, steps=2, stack=Stack(2, gat)))
    for gat in (True, False)
    for hidden in (8, 16, 32, 64)
]


@with_dtypes(PAIRS, len(PAIRS))
def test_two_convolutions(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, {} if dtype == torch.float64 else LITTLE)


@pytest.mark.parametrize("hidden", [16, 40])
def test_a_scan_of_neither_x_nor_g(hidden: int) -> None:
    """Its rows have no address, and the first node is there."""
    case = with_mask(scan(hidden, channels=0, state=True, convolved=False))
    case.problem.arguments[-1][0] = True
    check(case)


@pytest.mark.parametrize("problem", [scan(16, state=True), scan(64), windows(16), windows(40)], ids=str)
def test_a_scan_of_all_nodes_gives_the_bits_of_one_without_a_mask(problem: Problem) -> None:
    case = with_mask(problem)
    everywhere = torch.ones_like(case.problem.arguments[-1])
    masked = case.problem._replace(arguments=(*case.problem.arguments[:-1], everywhere))
    assert_same(bits(masked), bits(problem))


@pytest.mark.parametrize("value", [1e3, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "problem",
    [conv(16, stack=Stack()), conv(16, stack=GCN), scan(16), scan(40, steps=3), windows(16), layer(16, sequence=False)],
    ids=str,
)
def test_an_absent_cell_is_not_read(problem: Problem, value: float) -> None:
    """Neither x nor, in a scan, g."""
    case = with_mask(problem)
    *inputs, present = case.problem.arguments
    for i in range(2 if problem.op == "gated_scan" else 1):
        inputs[i] = torch.where(present.unsqueeze(-1), inputs[i], value)
    found = bits(case.problem._replace(arguments=(*inputs, present)))
    assert_same(found, bits(case))
    gradient = found[1]
    assert gradient is not None and not gradient[~present].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "problem",
    [layer(16), layer(32, steps=2), layer(64, steps=2), layer(16, stack=GCN), layer(64, steps=2, stack=GCN), layer(5)],
    ids=str,
)
def test_the_weight_of_an_edge_of_an_absent_stock_is_not_read(problem: Problem, value: float) -> None:
    """The first node is never there. A row of such an entry may be computed in another way: equal to rounding."""
    x, csr, weight, *rest = with_mask(problem).problem.arguments
    rowptr, col = csr[0].tolist(), csr[1]
    touched = col == 0
    touched[rowptr[0] : rowptr[1]] = True
    assert touched.sum() > 2
    case = with_mask(problem._replace(arguments=(x, csr, torch.where(touched, value, weight), *rest[:3])))
    found, expected = bits(case), bits(with_mask(problem))
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert (one is None) == (other is None), f"result {i}"
        if one is not None and other is not None:
            assert one.isfinite().all() and float((one - other).norm()) <= 1e-5 * float(other.norm()), f"result {i}"


@pytest.mark.parametrize(
    "problem",
    [
        conv(16, nodes=20, edges=60),
        conv(5, nodes=20, edges=60, stack=ONE_GCN),
        windows(16, starts=range(40), days=50, stocks=2),
        layer(16, nodes=12, edges=40),
    ],
    ids=str,
)
def test_every_order_of_threads_gives_the_same_bits(problem: Problem) -> None:
    case = with_mask(problem)
    first = bits(case)
    for order in ("1", "2"):
        assert_same(bits(case, {"HIERMT_SIMT_ORDER": order}), first)


@pytest.mark.parametrize("problem", [layer(16, stack=GCN), windows(40, channels=21, stocks=4)], ids=str)
def test_tf32_moves_the_numbers_as_far_as_10_bits_of_mantissa(problem: Problem) -> None:
    case = with_mask(problem)
    pairs = [(a, b) for a, b in zip(bits(case), bits(case, tf32=True), strict=True) if a is not None]
    assert any(not torch.equal(a, b) for a, b in pairs)
    for i, (a, b) in enumerate(pairs):
        assert float((a - b).norm()) <= 5e-2 * float(a.norm()), f"result {i}"


@pytest.mark.parametrize(
    "problem", [layer(16), layer(16, stack=GCN), layer(64, stack=GCN, steps=2), constant_edges(layer(16))], ids=str
)
def test_a_mask_takes_as_many_launches_as_none(problem: Problem | Case) -> None:
    assert launches(problem) == launches(
        with_mask(problem) if isinstance(problem, Case) else with_mask(problem).problem
    )


def assert_same(found: list[torch.Tensor | None], expected: list[torch.Tensor | None]) -> None:
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other)), f"result {i}"
