"""Operators on x whose offsets pass 2^31 and 2^32 elements, by the CUDA kernels."""

from __future__ import annotations

import pytest

from simt.cases import Case, check, constant_edges, launches, needs_harness
from support.far import Far, memory_file, problems

pytestmark = [needs_harness, pytest.mark.hostile("large-index")]

FAR = problems()
COPIES = [far for far in FAR if str(far).endswith("copies")]
NODES = next(far for far in FAR if far.problem.op == "tgcn_layer" and str(far).endswith("N"))


@pytest.mark.parametrize("far", FAR, ids=str)
def test_offsets_past_32_bits(far: Far) -> None:
    with memory_file() as path:
        check(far.problem, layout=far.layout(path))


@pytest.mark.compiled
@pytest.mark.parametrize("far", COPIES, ids=str)
def test_copies_far_apart_take_the_stack_at_once(far: Far) -> None:
    """With constant edges that is the backward, too."""
    case = constant_edges(far.problem)
    with memory_file() as path:
        placed = Case(case.problem, {**case.how, "layout": far.layout(path)})
        check(placed)
        assert launches(placed) == launches(case)


def test_nodes_far_apart_do_not() -> None:
    with memory_file() as path:
        placed = Case(NODES.problem, {"layout": NODES.layout(path)})
        assert launches(placed) > launches(Case(NODES.problem, {}))
