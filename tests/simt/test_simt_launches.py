"""How many kernels an operator launches, and what it asks of a GPU with less shared memory than an H100 has."""

from __future__ import annotations

import pytest
import torch

from simt.cases import GCN, ONE, ONE_GCN, Case, check, constant_edges, conv, launches, layer, needs_harness
from support.problems import Problem, Stack

pytestmark = needs_harness


@pytest.mark.parametrize(
    ("problem", "dtype", "count"),
    [
        (layer(16), torch.float32, 2),
        (layer(32, stack=Stack(3)), torch.bfloat16, 2),
        (layer(16, stack=GCN), torch.float32, 2),
        (layer(8, stack=ONE_GCN), torch.float16, 2),
        (layer(64, steps=2), torch.float32, 2),
        (layer(64, steps=2, channels=64, stack=GCN), torch.bfloat16, 2),
        (layer(64, steps=2, channels=65), torch.float32, 2),
        # The largest template of 64 channels, and one node more.
        (layer(64, steps=1, nodes=126), torch.float32, 2),
        (layer(64, steps=1, nodes=127), torch.float32, 6),
        (layer(40, steps=2), torch.float32, 6),
        (layer(5, stack=GCN), torch.float32, 6),
        (layer(16), torch.float64, 6),
        (layer(16, steps=9, starts=(2, 0, 5), window=4), torch.float32, 2),
    ],
    ids=str,
)
def test_launches_of_a_layer(problem: Problem, dtype: torch.dtype, count: int) -> None:
    assert launches(problem, dtype) == [("tgcn_layer", count)]


@pytest.mark.parametrize(
    ("problem", "shared_bytes", "count"),
    [
        (conv(16, stack=Stack()), 232448, 1),
        (conv(64, steps=2, channels=65), 232448, 1),
        (conv(64, steps=2, channels=65), 16384, 2),
        (conv(64, steps=2, stack=GCN), 232448, 1),
        (conv(40, steps=2), 232448, 2),
    ],
    ids=str,
)
def test_launches_of_a_stack_alone(problem: Problem, shared_bytes: int, count: int) -> None:
    assert launches(problem, HIERMT_SIMT_SHARED_BYTES=str(shared_bytes)) == [("conv_stack", count)]


@pytest.mark.parametrize(
    ("case", "dtype", "shared_bytes", "count"),
    [
        (constant_edges(layer(16)), torch.float32, 232448, 3),
        (constant_edges(layer(64, steps=2, nodes=100, channels=64)), torch.float32, 232448, 7),
        (constant_edges(layer(64, steps=2, nodes=100, channels=64)), torch.float32, 166912, 22),
        (Case(layer(16), {}), torch.float32, 232448, 3),
        (Case(layer(40), {}), torch.float32, 232448, 24),
        # What a block takes at 32 channels, and one byte less.
        (constant_edges(layer(32)), torch.float32, 52928, 7),
        (constant_edges(layer(32)), torch.float32, 52927, 22),
        (constant_edges(layer(16, stack=GCN)), torch.float32, 232448, 14),
        # On tensor cores.
        (constant_edges(layer(32, steps=2, edges=31)), torch.bfloat16, 232448, 7),
        (constant_edges(layer(64, steps=2, edges=31)), torch.bfloat16, 232448, 22),
    ],
    ids=str,
)
def test_launches_of_a_layer_backward(case: Problem | Case, dtype: torch.dtype, shared_bytes: int, count: int) -> None:
    found = launches(case, dtype, HIERMT_SIMT_SHARED_BYTES=str(shared_bytes))
    assert found[-1] == ("tgcn_layer_backward", count)


# A block with one step takes 56 and 59 kB, more with two; GPUs have 99 kB for a block, or 48 kB at the least.
@pytest.mark.parametrize("stack", [Stack(), GCN], ids=str)
@pytest.mark.parametrize("kilobytes", [48, 99])
def test_a_layer_asks_for_no_more_shared_memory_than_there_is(kilobytes: int, stack: Stack) -> None:
    problem = layer(16, nodes=400, edges=800, steps=2, stack=stack)
    check(problem, environment={"HIERMT_SIMT_SHARED_BYTES": str(1024 * kilobytes)})


def test_a_block_takes_fewer_steps_where_they_do_not_fit() -> None:
    # One step in 30 kB, five in 74 kB, of which so many copies would have a block take all.
    problem = layer(8, nodes=170, edges=300, copies=40, steps=4, stack=ONE, sequence=False)
    check(problem, environment={"HIERMT_SIMT_SHARED_BYTES": str(48 * 1024)})
