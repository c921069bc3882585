"""A layer that ends in a decision on the CUDA kernels: the bits of layer and decision, in fewer launches."""

from __future__ import annotations

import pytest
import torch

from simt.cases import GCN, ONE, ONE_GCN, launches, layer, needs_harness, with_dtypes
from simt.harness import Simt
from support.calls import prepare
from support.problems import Maker, Problem, Stack

pytestmark = needs_harness


def decided(hidden: int, features: int = 3, **how: object) -> Problem:
    return Maker(2).decided(layer(hidden, sequence=False, **how), features, 0.45)  # type: ignore[arg-type]


# Every kind of lane of the scan and of the decision, nodes of a block and one more, windows, states.
CASES = [
    decided(16),
    decided(8, 1, nodes=17, stack=ONE_GCN, state=True),
    decided(32, stack=Stack(1, edge=False), nodes=13),
    decided(64, 7, steps=2, nodes=11, state=True),
    decided(16, stack=GCN, steps=9, starts=(2, 0, 5), window=4, state=True),
    decided(5, stack=ONE, nodes=7),
    decided(40, stack=GCN, steps=2, copies=2),
    decided(70, steps=2, nodes=5, stack=ONE_GCN),
    decided(16, 16, nodes=50, edges=200, copies=4, steps=2),
    decided(3, 0, steps=3, starts=(1, 0), window=2),
]


@with_dtypes(CASES, len(CASES))
def test_the_bits_of_two_operators(case: Problem, dtype: torch.dtype) -> None:
    from support import layer_decision

    with Simt():
        layer_decision.check(case, dtype)


@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("case", [decided(16), decided(5, stack=ONE), decided(64, steps=2)], ids=str)
def test_numbers_that_are_not_finite(case: Problem, number: float) -> None:
    """Of x, of the last gate and of a head."""
    from support import layer_decision

    for place in (0, -7, -6, -2):
        call = prepare(case)
        call.leaves[place].view(-1)[1] = number
        with Simt():
            found = layer_decision.in_one(call)
            expected = layer_decision.in_two(call)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))


@pytest.mark.parametrize(
    ("problem", "dtype", "count"),
    [
        (decided(16), torch.float32, 2),
        (decided(64, steps=2), torch.bfloat16, 2),
        (decided(16, stack=GCN, steps=9, starts=(2, 0, 5), window=4), torch.float32, 2),
        (decided(40, steps=2), torch.float32, 6),
        (decided(16), torch.float64, 6),
    ],
    ids=str,
)
def test_launches_are_those_of_the_layer(problem: Problem, dtype: torch.dtype, count: int) -> None:
    assert launches(problem, dtype) == [("tgcn_layer_decision", count)]
