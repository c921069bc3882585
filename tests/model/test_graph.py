"""Graph: what it refuses, what it prepares, and that it is never stale."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hiermt
from hiermt import reference, testing
from hiermt.graph import CSR, as_graph
from hiermt.graph.csr import _cut_schedule, by_degree
from hiermt.reference.convolution import entry_rows
from support.graphs import small_graphs
from support.properties import HealthCheck, given, settings

RULES = {"gatv2": reference.GATV2_RULE, "gcn": reference.GCN_RULE}


def dense(entries: CSR, num_nodes: int, weight: Tensor | None) -> Tensor:
    """Adjacency ``[target, source]`` of a CSR, duplicates summed."""
    row = entry_rows(entries.rowptr, entries.col.numel())
    values = torch.ones(row.numel(), dtype=torch.float64) if weight is None else weight
    return torch.zeros(num_nodes, num_nodes, dtype=torch.float64).index_put(
        (row, entries.col.long()), values, accumulate=True
    )


@pytest.mark.hostile("loops")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=small_graphs())
def test_entries_equal_pyg(graph: tuple[int, Tensor, Tensor], backend: str) -> None:
    utils = pytest.importorskip("torch_geometric.utils")
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    num_nodes, edge_index, edge_weight = graph
    prepared = hiermt.Graph(edge_index, edge_weight, num_nodes, backend=backend)
    if num_nodes == 0:
        assert prepared.csr(0, True, torch.float64).col.numel() == 0
        return
    index, weight = utils.remove_self_loops(edge_index, edge_weight)
    index, weight = utils.add_self_loops(index, weight, fill_value="mean", num_nodes=num_nodes)
    norm_index, norm = gcn_norm(edge_index, edge_weight, num_nodes, dtype=torch.float64)
    for rule, expected_index, expected in (("gatv2", index, weight), ("gcn", norm_index, norm)):
        # No folding into a template here, so that every node is there to compare.
        entries = prepared.csr(RULES[rule], True, torch.float64)
        copies = num_nodes // (entries.rowptr.numel() - 1)
        size = num_nodes // copies
        assert entries.weight is not None
        actual = torch.block_diag(*[dense(entries, size, entries.weight)] * copies)
        wanted = torch.zeros(num_nodes, num_nodes, dtype=torch.float64).index_put(
            (expected_index[1], expected_index[0]), expected, accumulate=True
        )
        testing.assert_close(actual, wanted, message=rule)
        assert expected_index.size(1) == copies * entries.col.numel()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=small_graphs())
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_transpose_holds_the_same_entries(graph: tuple[int, Tensor, Tensor], rule: int, backend: str) -> None:
    num_nodes, edge_index, _ = graph
    entries = hiermt.Graph(edge_index, None, num_nodes, backend=backend).csr(rule, False, torch.float32)
    nodes = entries.rowptr.numel() - 1
    row = entry_rows(entries.rowptr, entries.col.numel()).int()
    source = entry_rows(entries.colptr, entries.row.numel()).int()
    order = entries.csr2csc.long()
    assert torch.equal(order.sort().values, torch.arange(order.numel()))
    assert torch.equal(entries.col[order], source)
    assert torch.equal(row[order], entries.row)
    assert torch.equal(entries.col[entries.rowptr[1:].long() - 1], torch.arange(nodes).int())  # the loop comes last


def test_both_backends_prepare_the_same() -> None:
    from hiermt.native import extension

    if extension.why_not_native("cpu"):
        pytest.skip("needs the extension")
    edge_index, edge_weight = testing.stock_graph(60, 200)
    edge_index = torch.cat([edge_index, torch.tensor([[5, 5, 7], [5, 5, 7]])], dim=1)
    edge_weight = torch.cat([edge_weight, torch.tensor([0.1, 0.2, 0.3])])
    for rule in RULES.values():
        ours, theirs = (
            hiermt.Graph(edge_index, edge_weight, 60, backend=name).csr(rule, True, torch.float32)
            for name in ("native", "reference")
        )
        for name, value in ours._asdict().items():
            if name != "schedule":
                assert torch.equal(value, getattr(theirs, name)), name


def test_nodes_by_degree_keep_their_order_at_equal_degrees() -> None:
    degrees = torch.tensor([2, 5, 0, 5, 2, 7])
    rowptr = torch.cat([torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)]).int()
    order = by_degree(rowptr)
    assert order.dtype == torch.int32 and order.tolist() == [5, 1, 3, 0, 4, 2]
    assert by_degree(torch.zeros(1, dtype=torch.int32)).shape == (0,)


def test_the_order_of_a_template_is_that_of_one_copy() -> None:
    degrees = torch.tensor([2, 5, 0, 5, 2, 7])
    one, three = (
        by_degree(torch.cat([torch.zeros(1, dtype=torch.int64), d.cumsum(0)]).int())
        for d in (degrees, degrees.repeat(3))
    )
    assert torch.equal(_cut_schedule(three, 6, True), one)


@pytest.mark.parametrize("copies", [1, 2, 7, 32])
def test_equal_copies_are_folded_into_a_template(copies: int, backend: str) -> None:
    edge_index, edge_weight = testing.stock_graph(20, 60, isolated=0)
    index, weight = testing.batched(edge_index, edge_weight, 20, copies)
    single = hiermt.Graph(edge_index, edge_weight, 20, backend=backend).csr(0, True, torch.float32)
    entries = hiermt.Graph(index, weight, 20 * copies, backend=backend).csr(0, True, torch.float32)
    for name, value in entries._asdict().items():
        assert torch.equal(value, getattr(single, name)), name


def test_copies_that_differ_in_one_weight_are_not_folded(backend: str) -> None:
    index, weight = testing.batched(*testing.stock_graph(20, 60), 20, 4)
    assert weight is not None
    weight[-1] += 0.5
    entries = hiermt.Graph(index, weight, 80, backend=backend).csr(0, True, torch.float32)
    assert entries.rowptr.numel() == 81


@pytest.mark.hostile("edge-outside")
@pytest.mark.parametrize("bad", [-1, 20, 2**62, -(2**62)])
def test_index_out_of_range(bad: int, backend: str) -> None:
    edge_index, edge_weight = testing.stock_graph(20, 60)
    edge_index[0, 5] = bad
    with pytest.raises(IndexError, match="edge_index"):
        hiermt.Graph(edge_index, edge_weight, 20, backend=backend)
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    with pytest.raises(IndexError, match="edge_index"):
        model(torch.randn(20, 6, 5), edge_index, edge_weight)


@pytest.mark.hostile("edge-form")
def test_wrong_edges_are_refused() -> None:
    edge_index, edge_weight = testing.stock_graph(20, 60)
    for bad, error in (
        (edge_index.float(), TypeError),
        (edge_index.t(), ValueError),
        (edge_index[0], ValueError),
        ([[0], [1]], TypeError),
    ):
        with pytest.raises(error, match="edge_index"):
            hiermt.Graph(bad, None, 20)
    for bad, error in (
        (edge_weight.long(), TypeError),
        (edge_weight[:-1], ValueError),
        (edge_weight.view(2, -1), ValueError),
        (0.5, TypeError),
    ):
        with pytest.raises(error, match="edge_weight"):
            hiermt.Graph(edge_index, bad, 20)
    hiermt.Graph(edge_index, edge_weight.view(-1, 1), 20)


@pytest.mark.hostile("large-index")
def test_too_large_for_32_bit_offsets_is_refused() -> None:
    for bad in (-1, 12.5):
        with pytest.raises(ValueError, match="num_nodes"):
            hiermt.Graph(torch.zeros(2, 0, dtype=torch.long), None, bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32-bit"):
        hiermt.Graph(torch.zeros(2, 0, dtype=torch.long), None, 2**31)


@pytest.mark.hostile("edge-weight")
def test_graph_refuses_a_second_set_of_weights_and_other_sizes() -> None:
    edge_index, edge_weight = testing.stock_graph(20, 60)
    graph = hiermt.Graph(edge_index, edge_weight, 20)
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    with pytest.raises(ValueError, match="holds its own weights"):
        model(torch.randn(20, 6, 5), graph, edge_weight)
    with pytest.raises(ValueError, match="40 nodes, the Graph has 20"):
        model(torch.randn(40, 6, 5), graph)
    testing.assert_close(model(torch.ones(20, 6, 5), graph)[0], model(torch.ones(20, 6, 5), edge_index, edge_weight)[0])


def test_raw_edges_are_prepared_once_until_they_change() -> None:
    edge_index, edge_weight = testing.stock_graph(20, 60)
    first = as_graph(edge_index, edge_weight, 20)
    assert as_graph(edge_index, edge_weight, 20) is first
    edge_weight[0] = 0.125
    changed = as_graph(edge_index, edge_weight, 20)
    assert changed is not first
    edge_index[:, 0] = torch.tensor([3, 9])
    assert as_graph(edge_index, edge_weight, 20) is not changed
    assert as_graph(edge_index, None, 20).edge_weight is None
    assert as_graph(edge_index, edge_weight, 25).num_nodes == 25


@pytest.mark.hostile("stale-graph")
def test_edges_changed_in_place_give_the_new_result(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    edge_index, edge_weight = testing.stock_graph(20, 60)
    x = torch.randn(20, 6, 5)
    before = model(x, edge_index, edge_weight)[0]
    edge_index.copy_(edge_index.roll(1, dims=1).flip(0))
    after = model(x, edge_index, edge_weight)[0]
    assert not torch.equal(before, after)
    testing.assert_close(after, model(x, edge_index.clone(), edge_weight.clone())[0])


@pytest.mark.hostile("stale-graph")
def test_replaced_data_gives_the_new_result() -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    edge_index, edge_weight = testing.stock_graph(20, 60)
    x = torch.randn(20, 6, 5)
    model(x, edge_index, edge_weight)
    edge_index.data = (edge_index + 1) % 20
    assert torch.equal(model(x, edge_index, edge_weight)[0], model(x, edge_index.clone(), edge_weight)[0])


@pytest.mark.hostile("stale-graph")
def test_freed_and_reused_storage_gives_the_new_result() -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    x = torch.randn(20, 6, 5)
    for seed in range(20):
        edge_index, edge_weight = testing.stock_graph(20, 60, seed=seed)
        result = model(x, edge_index, edge_weight)[0]
        testing.assert_close(result, model(x, hiermt.Graph(edge_index, edge_weight, 20))[0])
        del edge_index, edge_weight
        gc.collect()


def test_cache_does_not_keep_edges_alive() -> None:
    from hiermt.graph.cache import _cache

    gc.collect()
    before = len(_cache)
    edge_index, edge_weight = testing.stock_graph(20, 60)
    as_graph(edge_index, edge_weight, 20)
    assert len(_cache) == before + 1
    del edge_index, edge_weight
    gc.collect()
    assert len(_cache) == before


def test_a_new_batch_with_the_edges_of_an_earlier_one_is_not_prepared_again() -> None:
    """PyG's DataLoader makes a new tensor for each batch."""
    edges = testing.batched(*testing.stock_graph(20, 60), 20, 3)
    smaller = testing.batched(*testing.stock_graph(20, 60), 20, 2)

    def known(edges: tuple[Tensor, Tensor | None], nodes: int, backend: str = "auto") -> hiermt.Graph:
        return as_graph(edges[0].clone(), None if edges[1] is None else edges[1].clone(), nodes, backend)

    first, other = known(edges, 60), known(smaller, 40)
    assert other is not first
    for _ in range(2):
        assert known(edges, 60) is first and known(smaller, 40) is other
    with torch.inference_mode():
        assert known(edges, 60) is first
    different = [
        known((edges[0], None), 60),
        known((edges[0], edges[1].double()), 60),
        known((edges[0].int(), edges[1]), 60),
        known((edges[0], edges[1] + 1e-7), 60),
        known((edges[0].flip(1), edges[1]), 60),
        known(edges, 61),
        known(edges, 60, "reference"),
    ]
    assert first not in different and len(set(map(id, different))) == len(different)


@pytest.mark.parametrize("invisible", [False, True], ids=["written in place", "written through numpy"])
def test_a_graph_of_an_earlier_batch_is_never_stale(invisible: bool, backend: str) -> None:
    """Whatever becomes of the tensors of the first batch, the graph for later ones is that of their numbers."""
    model = hiermt.TGCN_HierarchicalMT(5, 8, 1, backend=backend)
    x = torch.randn(60, 4, 5)
    edges = testing.batched(*testing.stock_graph(20, 60), 20, 3)
    first = edges[0].clone(), edges[1].clone()
    model(x, *first)
    if invisible:
        first[0].numpy()[0, :9] = 4
        first[1].numpy()[:] = 0.5
    else:
        first[0][0, :9] = 4
        first[1].fill_(0.5)
    for one in ((edges[0].clone(), edges[1].clone()), (first[0].clone(), first[1].clone())):
        expected = model(x, hiermt.Graph(one[0].clone(), one[1].clone(), 60))
        assert all(torch.equal(a, b) for a, b in zip(model(x, *one), expected, strict=True))


def test_few_graphs_of_earlier_batches_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from hiermt.graph import cache

    monkeypatch.setattr(cache, "_recent", ())
    small, large, larger = testing.stock_graph(20, 60), testing.stock_graph(100, 300), testing.stock_graph(100, 900)
    monkeypatch.setattr(cache, "MOST_SIZE", 120 + small[0].size(1) + large[0].size(1))
    for seed in range(2 * cache.MOST_GRAPHS):
        as_graph(small[0], small[1] + seed, 20)
        assert len(cache._recent) == min(seed + 1, cache.MOST_GRAPHS)
    for edges in (large, larger):  # the second is too large
        as_graph(*edges, 100)
        assert [one.graph.num_nodes for one in cache._recent] == [100, 20]
        assert cache._recent[0].graph.num_edges == large[0].size(1)


def test_another_stream_does_not_get_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not be ready there. A capture has a stream of its own, and takes what was prepared before."""
    from hiermt.graph import cache

    stream, capturing = 1, False
    monkeypatch.setattr(cache, "_recent", ())
    monkeypatch.setattr(cache, "_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    edge_index, edge_weight = testing.stock_graph(20, 60)
    first = as_graph(edge_index, edge_weight, 20)
    stream = 2
    second = as_graph(edge_index, edge_weight, 20)
    assert second is not first and as_graph(edge_index.clone(), edge_weight, 20) is second
    stream = 1
    assert as_graph(edge_index.clone(), edge_weight, 20) is first
    stream, capturing = 3, True
    assert as_graph(edge_index, edge_weight, 20) is second


def test_inference_tensors_work() -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    with torch.inference_mode():
        edge_index, edge_weight = testing.stock_graph(20, 60)
        assert model(torch.randn(20, 6, 5), edge_index, edge_weight)[0].isfinite().all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_prepared_without_grad_serves_training(mode: type[torch.no_grad]) -> None:
    """An evaluation that comes first leaves nothing behind that a training step cannot use."""
    edge_index, weight = testing.stock_graph(10, 20)
    weight.requires_grad_()
    fixed = hiermt.Graph(edge_index, weight.detach(), 10)
    trained = hiermt.Graph(edge_index, weight, 10)
    with mode():
        fixed.csr(reference.GATV2_RULE, True, torch.float32)
        trained.csr(reference.GATV2_RULE, True, torch.float32)
    for tensor in fixed.csr(reference.GATV2_RULE, True, torch.float32):
        assert tensor is None or not tensor.is_inference()
    found = trained.csr(reference.GATV2_RULE, True, torch.float32).weight
    assert found is not None and found.requires_grad


def test_moved_to_the_current_gpu_it_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # A tensor on a GPU has a numbered device, callers mostly say "cuda".
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with FakeTensorMode():
        graph = hiermt.Graph(torch.empty(2, 0, dtype=torch.int64, device="cuda:0"), None, 4)
        assert graph.to("cuda") is graph and graph.to("cuda:0") is graph
        assert graph.to("cuda:1").device == torch.device("cuda:1")


@pytest.mark.parametrize("use_gat", [True, False])
def test_tensors_changed_in_place_are_prepared_anew(use_gat: bool, backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, 1, use_gat, backend=backend)
    x = torch.randn(20, 4, 5)
    edge_index, edge_weight = testing.stock_graph(20, 60)
    graph = hiermt.Graph(edge_index, edge_weight, 20)
    results = []
    for change in (lambda: None, lambda: edge_weight.mul_(3), lambda: edge_index.copy_(edge_index.flip(1))):
        change()
        found = model(x, graph)[0]
        assert torch.equal(found, model(x, hiermt.Graph(edge_index.clone(), edge_weight.clone(), 20))[0])
        assert not any(torch.equal(found, other) for other in results)
        results.append(found)
    edge_index[0, 0] = 20
    with pytest.raises(IndexError, match="outside"):
        model(x, graph)
