"""``hiermt::graph_prepare`` against its twin, entry by entry, and what its blocks promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hiermt import reference
from hiermt.native import extension
from hiermt.testing import batched, stock_graph
from support.graphs import small_graphs
from support.properties import given, settings

pytestmark = pytest.mark.skipif(
    extension.why_not_native("cpu") is not None, reason=str(extension.why_not_native("cpu"))
)
RULES = (reference.GATV2_RULE, reference.GCN_RULE)


def assert_equals_twin(edge_index: Tensor, num_nodes: int, rule: int) -> Tensor:
    """Compares all that the twin defines; returns the blocks, which it leaves whole."""
    from hiermt import ops

    found = ops.graph_prepare(edge_index, num_nodes, rule)
    expected = reference.graph_prepare(edge_index, num_nodes, rule)
    for a, b in zip(found[:6], expected[:6], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert_blocks_are_closed(found[6], found[0], found[1], num_nodes)
    return found[6]


def assert_blocks_are_closed(blocks: Tensor, rowptr: Tensor, col: Tensor, num_nodes: int) -> None:
    assert blocks.dtype == torch.int32
    assert blocks[0] == 0
    assert blocks[-1] == num_nodes
    assert (blocks.diff() > 0).all()
    row = torch.arange(num_nodes).repeat_interleave(rowptr.diff().long())
    source = col[: int(rowptr[-1])].long()
    block_of = torch.bucketize(torch.arange(num_nodes), blocks[1:].long(), right=True)
    assert torch.equal(block_of[row], block_of[source])


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=150, deadline=None)
@given(small_graphs())
def test_small_graphs(rule: int, graph: tuple[int, Tensor, Tensor]) -> None:
    num_nodes, edge_index, _ = graph
    assert_equals_twin(edge_index, num_nodes, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_loops_and_duplicates(rule: int, dtype: torch.dtype) -> None:
    edge_index = torch.randint(0, 300, (2, 4000), dtype=dtype)
    edge_index[:, ::7] = edge_index[:1, ::7]
    assert_equals_twin(edge_index, 300, rule)
    assert_equals_twin(edge_index.t().contiguous().t(), 300, rule)
    assert_equals_twin(edge_index[:, 1::3], 300, rule)


def test_a_batch_is_cut_between_its_copies() -> None:
    edges, _ = batched(stock_graph(100, 720, isolated=0)[0], None, 100, 32)
    blocks = assert_equals_twin(edges, 3200, reference.GATV2_RULE)
    assert set(blocks.tolist()) <= set(range(0, 3201, 100))
    assert blocks.numel() > 16


def test_small_components_are_joined_to_blocks_worth_a_task() -> None:
    pairs = torch.arange(1000).view(-1, 2)
    blocks = assert_equals_twin(torch.cat([pairs, pairs.flip(1)]).t(), 1000, reference.GCN_RULE)
    assert (blocks.diff() >= 64).all()
    assert blocks.numel() == 16


def test_one_edge_across_keeps_a_graph_whole() -> None:
    blocks = assert_equals_twin(torch.tensor([[0], [999]]), 1000, reference.GATV2_RULE)
    assert blocks.tolist() == [0, 1000]


@pytest.mark.parametrize("bad", [-1, 5, 2**31, 2**62, -(2**63)])
@pytest.mark.parametrize("row", [0, 1])
def test_an_end_outside_names_the_edge(bad: int, row: int) -> None:
    from hiermt import ops

    edge_index = torch.tensor([[0, 1, 2], [1, 2, 3]])
    edge_index[row, 1] = bad
    with pytest.raises(IndexError, match=r"edge_index: edge 1 \(.*\) is outside the nodes \[0, 5\)"):
        ops.graph_prepare(edge_index, 5, reference.GCN_RULE)


def test_bad_arguments_name_what_is_wrong() -> None:
    from hiermt import ops

    with pytest.raises(RuntimeError, match=r"edge_index: expected a shape \[2, E\], got \[3, 2\]"):
        ops.graph_prepare(torch.zeros(3, 2, dtype=torch.long), 4, 0)
    with pytest.raises(RuntimeError, match="edge_index: expected dtype Int or Long, got Float"):
        ops.graph_prepare(torch.zeros(2, 2), 4, 0)
    with pytest.raises(RuntimeError, match="num_nodes: expected a count, got -1"):
        ops.graph_prepare(torch.zeros(2, 0, dtype=torch.long), -1, 0)
    with pytest.raises(RuntimeError, match="rule: expected 0"):
        ops.graph_prepare(torch.zeros(2, 0, dtype=torch.long), 1, 7)
    with pytest.raises(RuntimeError, match="sum fits 32 bits"):
        ops.graph_prepare(torch.zeros(2, 1, dtype=torch.long), 2**31 - 1, 0)


def test_opcheck() -> None:
    from hiermt import ops

    edge_index = torch.randint(0, 9, (2, 30))
    ops.graph_prepare(edge_index, 9, 0)
    for rule in RULES:
        torch.library.opcheck(torch.ops.hiermt.graph_prepare.default, (edge_index, 9, rule))
