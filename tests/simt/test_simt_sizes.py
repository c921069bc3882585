"""Convolutions, scans and layers of every size at which the CUDA kernels have a way of their own, against the twin."""

from __future__ import annotations

import pytest
import torch

from simt.cases import (
    GCN,
    LITTLE,
    ONE,
    ONE_GCN,
    Case,
    bits,
    check,
    constant_edges,
    conv,
    layer,
    needs_harness,
    scan,
    windows,
    with_dtypes,
    without_room,
)
from support.calls import LAYOUTS
from support.problems import Problem, Stack

pytestmark = needs_harness

STRIDED = {"layout": LAYOUTS["step"]}

CONVS = [
    case
    for stack in (ONE, ONE_GCN)
    for case in (
        conv(16, stack=stack),
        conv(8, copies=2, stack=stack),
        conv(64, steps=2, channels=5, stack=stack),
        conv(100, steps=2, channels=40, activation=0, stack=stack),
        conv(256, steps=1, nodes=6, edges=10, stack=stack),
        conv(32, steps=3, stack=stack),
        conv(5, activation=2, stack=stack),
        conv(16, nodes=50, edges=600, steps=1, stack=stack),
        conv(16, channels=0, stack=stack),
        Case(conv(16, stack=stack), STRIDED),
    )
]


# Without room for a stack in one launch the backward is dense, and computes the first convolution again.
PAIRS = [
    conv(hidden, nodes=5, edges=8, steps=2, stack=Stack(2, gat))
    for gat, hidden in [(True, 8), (True, 16), (True, 32), (False, 8), (False, 32), (False, 5), (True, 64)]
]


@with_dtypes(PAIRS, 6)
def test_two_convolutions(case: Problem, dtype: torch.dtype) -> None:
    check(case, dtype, {} if dtype == torch.float64 else LITTLE)


# More nodes than have a lane for each quad of channels.
MANY = [
    conv(hidden, nodes=nodes, edges=800, steps=1, channels=5, stack=stack)
    for stack in (ONE, ONE_GCN)
    for hidden, nodes in ((8, 390), (16, 195))
]


@with_dtypes(MANY, 4)
def test_many_nodes(case: Problem, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("stack", [Stack(2), Stack(2, False)], ids=["GATv2", "GCN"])
def test_without_an_order_of_the_nodes(stack: Stack) -> None:
    problem = conv(16, nodes=40, edges=200, stack=stack)
    x, csr, *rest = problem.arguments
    unordered = problem._replace(arguments=(x, [*csr[:5], csr[5].new_empty(0)], *rest))
    check(unordered)
    (one, *_), (other, *_) = (bits(Case(which, {"wanted": ()})) for which in (problem, unordered))
    assert one is not None and other is not None and torch.equal(one, other)


@with_dtypes(CONVS, 5)
def test_conv(case: Problem | Case, dtype: torch.dtype) -> None:
    check(case, dtype)


SCANS = [
    scan(16),
    scan(8, nodes=9, state=True),
    scan(32, channels=1, sequence=False),
    scan(64, nodes=5, steps=3),
    scan(100, nodes=3, steps=2, state=True),
    scan(32, channels=2, state=True, convolved=False),
    windows(16),
    windows(16, channels=2, convolved=False),
    windows(8, channels=1, sequence=False),
    windows(32, starts=(0, 7, 3), steps=7),
    windows(64, starts=(2, 0), days=6, stocks=2),
    windows(40, starts=(3, 0, 1), days=8, stocks=2, channels=3, state=True, sequence=False),
    # More windows than a warp looks at together, and days that more than four, or none, of them have.
    windows(8, starts=(*range(60), *[70] * 9), days=80, stocks=1, channels=2),
    # More channels than a warp adds up.
    windows(100, starts=(3, 0), days=8, stocks=2, channels=3),
    scan(256, nodes=2, steps=2, channels=2),
    scan(100, nodes=3, steps=2, channels=3, convolved=False),
    Case(windows(16, starts=(13, 0, 0, 5), steps=1), STRIDED),
]


@with_dtypes(SCANS, 12)
def test_scan(case: Problem | Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@without_room
def test_scan_without_room_for_the_weights_in_shared_memory(
    problem: Problem, dtype: torch.dtype, environment: dict[str, str]
) -> None:
    check(problem, dtype, environment)


AFTER = Stack(2, between=False)
GCN_AFTER = Stack(2, False, between=False)
LAYERS = [
    layer(16, copies=2),
    layer(16, sequence=False),
    layer(8, stack=Stack(1, edge=False, between=False)),
    layer(16, stack=GCN),
    Case(layer(5, stack=Stack(3)), STRIDED),
    layer(64, steps=2, nodes=5, edges=9),
    layer(64, steps=3, channels=64, copies=50, nodes=3, edges=4, stack=GCN_AFTER),
    layer(32, steps=2, stack=Stack(1, False, between=False), sequence=False),
    # Enough copies that a block takes several steps, the last block of a copy fewer.
    layer(8, nodes=3, edges=4, copies=60, steps=5, stack=ONE),
    # Eight entries a node, and one more.
    layer(8, nodes=3, edges=21, copies=60, steps=5, stack=ONE),
    constant_edges(layer(8, nodes=3, edges=22, copies=60, steps=5)),
    layer(16, nodes=3, edges=4, copies=140, steps=3, channels=3),
    layer(16, nodes=40, edges=90, copies=3, steps=6, channels=20, stack=Stack(3)),
    layer(16, nodes=40, edges=90, copies=3, steps=6, channels=20, stack=Stack(3, False)),
    Case(layer(8, nodes=3, edges=4, copies=60, steps=5, stack=ONE_GCN), STRIDED),
    layer(32, nodes=12, edges=40, steps=3, stack=GCN_AFTER),
    layer(64, nodes=61, edges=300, steps=3, channels=20, stack=Stack(3, between=False)),
    Case(layer(64, steps=5, copies=40, channels=1, stack=ONE), STRIDED),
    layer(64, nodes=61, edges=300, steps=2, channels=33, stack=GCN),
    # More channels of x than of the item.
    layer(64, nodes=3, edges=4, steps=2, channels=65),
    layer(16, copies=2, state=True),
    layer(5, copies=2, stack=GCN, state=True, sequence=False),
    # More convolutions than one launch takes.
    layer(16, steps=2, stack=Stack(4, False)),
    # Rounds of fewer threads than the products for the weights have parts.
    layer(64, nodes=50, edges=100, steps=2, stack=Stack(1, between=False)),
    layer(64, nodes=100, edges=200, steps=1),
    layer(16, channels=0),
    layer(5, channels=0),
    layer(64, channels=0, steps=2, stack=Stack(1, False)),
]


@with_dtypes(LAYERS, 7)
def test_layer(case: Problem | Case, dtype: torch.dtype) -> None:
    check(case, dtype)


CONSTANT_EDGES = [
    constant_edges(problem)
    for problem in (
        layer(16, copies=2),
        layer(8, sequence=False),
        layer(16, channels=3, stack=ONE),
        # Four lanes an item, then eight.
        layer(32, nodes=7, edges=30, steps=2, channels=35),
        layer(64, nodes=5, edges=20, steps=2),
        layer(16, stack=AFTER),
        layer(16, nodes=40, edges=90, copies=3, steps=6, channels=20, stack=Stack(3)),
        layer(8, nodes=3, edges=4, copies=140, steps=3, channels=17),
        # More tasks than blocks: a block adds to its partial sums.
        layer(16, nodes=3, edges=4, copies=300, steps=2, channels=2),
        layer(16, nodes=1, edges=0),
        layer(32, nodes=41, edges=200, copies=50, steps=5, channels=35),
        layer(32, nodes=1, edges=0, channels=3, stack=Stack(1, between=False)),
        layer(64, nodes=21, edges=100, steps=3, channels=64, stack=Stack(3)),
        layer(64, nodes=3, edges=4, copies=140, steps=2, channels=2, stack=AFTER),
        layer(64, nodes=50, edges=100, steps=1, stack=ONE),
        layer(16, channels=0),
        layer(64, channels=0, steps=2),
    )
]


@with_dtypes(CONSTANT_EDGES, 5)
def test_layer_with_constant_edges(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


# Stack in one launch both ways, forward alone, in none; a series of more days than the windows have together.
OVER_WINDOWS = [
    constant_edges(layer(16, steps=9, starts=(2, 0, 5), window=4)),
    constant_edges(layer(8, steps=12, channels=3, sequence=False, starts=(0, 9), window=2)),
    layer(16, steps=9, starts=(2, 0, 5), window=4),
    layer(32, steps=6, stack=Stack(1, False, between=False), starts=(2, 1), window=4),
    Case(layer(5, steps=6, stack=Stack(3), starts=(2, 1, 0), window=3), STRIDED),
    constant_edges(layer(64, steps=5, nodes=5, edges=8, starts=(2,), window=3)),
    # Every node a part of its own, or the only one.
    layer(16, steps=6, nodes=5, edges=0, starts=(2, 0), window=3),
    constant_edges(layer(8, steps=6, nodes=1, edges=0, starts=(2, 0), window=3)),
    layer(16, steps=6, nodes=5, edges=0, stack=GCN, starts=(2, 0), window=3),
    constant_edges(layer(16, steps=9, starts=(2, 0, 5), window=4, state=True)),
    layer(5, steps=6, stack=GCN, starts=(2, 1, 0), window=3, state=True, sequence=False),
]


@with_dtypes(OVER_WINDOWS, 3)
def test_layer_over_windows(case: Problem | Case, dtype: torch.dtype) -> None:
    check(case, dtype)


ORDERS = [
    conv(5, nodes=20, edges=60, stack=ONE_GCN),
    scan(64, nodes=5, steps=2),
    windows(16, starts=range(40), days=50, stocks=2),
    windows(64, stocks=2),
    layer(16, nodes=12, edges=40, copies=50),
    layer(16, nodes=12, edges=40, copies=50, stack=GCN),
    constant_edges(layer(16, nodes=12, edges=40, copies=50)),
    constant_edges(layer(8, nodes=20, edges=60, channels=9)),
    layer(32, nodes=12, edges=40, copies=50),
    constant_edges(layer(64, nodes=20, edges=60, channels=9)),
    layer(64, nodes=20, edges=60, channels=9, steps=2, stack=GCN),
    OVER_WINDOWS[0],
]


@pytest.mark.parametrize("case", ORDERS, ids=str)
def test_every_order_of_threads_gives_the_same_bits(case: Problem | Case) -> None:
    first = bits(case)
    for order in ("1", "2"):
        again = bits(case, {"HIERMT_SIMT_ORDER": order})
        assert all(one is None or torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize(
    "case",
    [
        layer(64, nodes=5, edges=8, steps=3),
        layer(40, channels=21, steps=3, stack=GCN),
        constant_edges(layer(16, channels=13, stack=GCN)),
        windows(40, channels=21, stocks=4),
    ],
    ids=str,
)
def test_tf32_moves_the_numbers_as_far_as_10_bits_of_mantissa(case: Problem | Case) -> None:
    """bfloat16 and half always take this way."""
    exact, rounded = bits(case), bits(case, tf32=True)
    pairs = [(a, b) for a, b in zip(exact, rounded, strict=True) if a is not None]
    assert any(not torch.equal(a, b) for a, b in pairs)
    for i, (a, b) in enumerate(pairs):
        # Sums over a softmax cancel: what is left of the gradients of lin_r and lin_edge keeps 4 % of the rounding.
        bound = 4e-3 if i < 2 else 5e-2
        assert float((a - b).norm()) <= bound * float(a.norm()), f"result {i}"
