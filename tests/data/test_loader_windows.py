"""Gathering of windows, and loaders: shuffling, sharding, graphs that change."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

import hiermt
from hiermt import DynamicGraph, Graph, TGCN_HierarchicalMT, data, functional, train_hierarchical
from hiermt.data import DataError
from hiermt.testing import stock_graph

STOCKS, DAYS, FEATURES, WINDOW = 6, 40, 3, 5


def dataset(graphs: DynamicGraph | None = None) -> data.WindowDataset:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator)
    labels = [torch.randint(2, (STOCKS, DAYS), generator=generator) for _ in range(2)]
    if graphs is not None:
        return data.WindowDataset.with_graphs(series, graphs, WINDOW, *labels)
    return data.WindowDataset(series, *stock_graph(STOCKS, 8, 1), WINDOW, *labels)


def graph(seed: int) -> Graph:
    return Graph(*stock_graph(STOCKS, 8, 1, seed), STOCKS)


def changing() -> DynamicGraph:
    return DynamicGraph([(0, graph(0)), (15, graph(1)), (16, graph(2)), (25, graph(3))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("steps", [0, 1, 5, 12])
@pytest.mark.parametrize("layout", ["dense", "slice of stocks", "days first", "every second feature"])
def test_gather_is_indexing(backend: str, dtype: torch.dtype, steps: int, layout: str) -> None:
    series = torch.randn(4, 12, 3).to(dtype)
    if layout == "slice of stocks":
        series = torch.randn(9, 12, 3).to(dtype)[1::2]
    elif layout == "days first":
        series = torch.randn(12, 4, 3).to(dtype).transpose(0, 1)
    elif layout == "every second feature":
        series = torch.randn(4, 12, 6).to(dtype)[..., ::2]
    starts = torch.tensor([0, 12 - steps, 3 if steps < 9 else 0, 0])
    found = functional.gather_windows(series, starts, steps, backend=backend)
    assert found.is_contiguous()
    for window, start in zip(found, starts.tolist(), strict=True):
        assert torch.equal(window, series[:, start : start + steps])


def test_gather_of_nothing(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert functional.gather_windows(torch.randn(4, 12, 3), none, 5, backend=backend).shape == (0, 4, 5, 3)
    assert functional.gather_windows(torch.randn(0, 12, 3), none + 0, 5, backend=backend).shape == (0, 0, 5, 3)
    one = torch.zeros(1, dtype=torch.int64)
    assert functional.gather_windows(torch.randn(0, 12, 3), one, 5, backend=backend).shape == (1, 0, 5, 3)
    assert functional.gather_windows(torch.randn(2, 12, 0), one, 5, backend=backend).shape == (1, 2, 5, 0)


@pytest.mark.parametrize("start", [-1, 8, 2**62, -(2**63)])
def test_a_window_outside_is_named(backend: str, start: int) -> None:
    series = torch.randn(4, 12, 3)
    starts = torch.tensor([0, start])
    with pytest.raises(IndexError, match=rf"{start} is outside \[0, 8\)"):
        functional.gather_windows(series, starts, 5, backend=backend)


@pytest.mark.parametrize("start", [-1, 8, 2**62])
def test_nothing_outside_is_read(start: int) -> None:
    with pytest.raises(IndexError):
        functional.gather_windows(torch.randn(4, 12, 3), torch.tensor([start]), 5, check=False)


def test_gather_refuses(backend: str) -> None:
    series, starts = torch.randn(4, 12, 3), torch.tensor([0])
    with pytest.raises(ValueError, match=r"steps: expected a length in \[0, 12\]"):
        functional.gather_windows(series, starts, 13, backend=backend)
    with pytest.raises(TypeError, match="starts: expected int64"):
        functional.gather_windows(series, starts.float(), 5, backend=backend)
    with pytest.raises(TypeError, match="series: expected floating point"):
        functional.gather_windows(series.long(), starts, 5, backend=backend)
    with pytest.raises(ValueError, match="stocks, days, features"):
        functional.gather_windows(series[0], starts, 5, backend=backend)
    with pytest.raises(ValueError, match="vector"):
        functional.gather_windows(series, starts[0], 5, backend=backend)


def test_gather_has_a_gradient(backend: str) -> None:
    series = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    starts = torch.tensor([0, 2, 2])
    assert torch.autograd.gradcheck(lambda s: functional.gather_windows(s, starts, 3, backend=backend), (series,))


def visited(loader: data.WindowLoader) -> list[list[int]]:
    return [batch.starts.tolist() for batch in loader]


def test_batches_are_windows_and_labels() -> None:
    whole = dataset()
    for batch in data.WindowLoader(whole, batch_size=7, shuffle=True):
        for x, start in zip(batch.x, batch.starts.tolist(), strict=True):
            assert torch.equal(x, whole.series[:, start : start + WINDOW])
        ends = batch.starts + WINDOW - 1
        assert torch.equal(batch.signal_labels, whole.signal_labels[:, ends].t())
        assert batch.graph is whole.graph


def test_state_restores_the_order() -> None:
    loader = data.WindowLoader(dataset(), range(20), 4, shuffle=True, seed=1)
    visited(loader)
    state = loader.state_dict()
    expected = visited(loader)
    other = data.WindowLoader(dataset(), range(20), 4, shuffle=True, seed=2)
    other.load_state_dict(state)
    assert visited(other) == expected and other.epoch == 2


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_make_the_whole(world: int) -> None:
    """Batch by batch, what the processes visit is the batch of one process with `world` times the size."""
    starts = range(24)

    def loader(rank: int, ranks: int, size: int) -> data.WindowLoader:
        sampler = DistributedSampler(starts, ranks, rank, shuffle=True, seed=5)
        return data.WindowLoader(dataset(), starts, size, sampler=sampler)

    shards = [loader(rank, world, 4) for rank in range(world)]
    alone = loader(0, 1, 4 * world)
    for _ in range(2):
        parts = [visited(shard) for shard in shards]
        together = [sorted(itertools.chain(*batches)) for batches in zip(*parts, strict=True)]
        assert together == [sorted(batch) for batch in visited(alone)]
    assert visited(alone) != visited(alone)  # a new order in each epoch
    assert len(shards[0]) == 24 // (4 * world)


def test_sampler_and_shuffle_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="give one of the two"):
        data.WindowLoader(dataset(), range(8), 4, shuffle=True, sampler=range(8))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_graphs_that_change(shuffle: bool, drop_last: bool) -> None:
    graphs = changing()
    loader = data.WindowLoader(dataset(graphs), batch_size=4, shuffle=shuffle, drop_last=drop_last)
    batches = list(loader)
    assert len(batches) == len(loader)
    for batch in batches:
        ends = (batch.starts + WINDOW - 1).tolist()
        assert {id(graphs.at(end)) for end in ends} == {id(batch.graph)}
        assert batch.edge_index is batch.graph.edge_index
    seen = sorted(start for batch in batches for start in batch.starts.tolist())
    assert len(set(seen)) == len(seen)
    if not drop_last:
        assert seen == list(range(DAYS - WINDOW + 1))
    if shuffle:
        assert visited(loader) != [batch.starts.tolist() for batch in batches]


def test_graphs_that_change_with_a_sampler() -> None:
    sampler = DistributedSampler(range(30), 2, 0, shuffle=True)
    loader = data.WindowLoader(dataset(changing()), range(30), 4, sampler=sampler)
    batches = list(loader)
    assert sum(len(batch.starts) for batch in batches) == 15
    assert all(len({loader.dataset.graphs.block_of(s + WINDOW - 1) for s in b.starts.tolist()}) == 1 for b in batches)


def test_graphs_have_to_fit() -> None:
    other = Graph(*stock_graph(STOCKS + 1, 8, 1), STOCKS + 1)
    with pytest.raises(DataError, match="expected 6 nodes, one per stock, got 7"):
        dataset(DynamicGraph([(0, other)]))
    with pytest.raises(DataError, match="valid from day 5 on, but the first window ends on day 4"):
        dataset(DynamicGraph([(5, graph(0))]))
    assert dataset(DynamicGraph([(4, graph(0))])).num_windows == DAYS - WINDOW + 1


def test_training_on_graphs_that_change(backend: str) -> None:
    """The batches give what the windows give one by one, each on its graph."""
    whole = dataset(changing())
    model = TGCN_HierarchicalMT(FEATURES, 4, backend=backend)
    loader = data.WindowLoader(whole, batch_size=5)
    for batch in loader:
        logits = model(batch.x, batch.graph)[0]
        for row, start in zip(logits, batch.starts.tolist(), strict=True):
            alone = model(whole.series[:, start : start + WINDOW], whole.graphs.at(start + WINDOW - 1))[0]
            hiermt.testing.assert_close(row, alone)
    losses, _, _ = train_hierarchical(
        model, hiermt.training.adam(model, 1e-2), None, loader, None, num_epochs=6, progress=False
    )
    assert losses[-1] < losses[0]


def test_graphs_that_change_as_a_disjoint_union(backend: str) -> None:
    """PyG's loader puts windows of any days into one batch, each with its own edges."""
    pytest.importorskip("torch_geometric")
    whole = dataset(changing())
    model = TGCN_HierarchicalMT(FEATURES, 4, backend=backend)
    (union,) = data.pyg_loader(whole, batch_size=100)
    logits = model(union.x, union.edge_index, union.edge_weight)[0].reshape(-1, STOCKS, 2)
    for row, start in zip(logits, range(whole.num_labelled), strict=True):
        alone = model(whole.series[:, start : start + WINDOW], whole.graphs.at(start + WINDOW - 1))[0]
        hiermt.testing.assert_close(row, alone)


def test_trains_like_a_loader_of_torch(backend: str) -> None:
    """End to end: the same losses from the fast loader as from plain batches with the same windows."""
    whole = dataset()

    def plain() -> list[data.WindowBatch]:
        return list(data.WindowLoader(whole, range(24), 8))

    def run(batches: object) -> object:
        torch.manual_seed(0)
        model = TGCN_HierarchicalMT(FEATURES, 4, backend=backend)
        return train_hierarchical(
            model, hiermt.training.adam(model, 1e-2), None, batches, plain(), num_epochs=3, progress=False
        )

    assert run(data.WindowLoader(whole, range(24), 8)) == run(plain())


def test_a_step_prepares_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dataset()
    model = TGCN_HierarchicalMT(FEATURES, 4)
    loader = data.WindowLoader(whole, range(24), 8, shuffle=True)
    optimizer = hiermt.training.adam(model)
    train_hierarchical(model, optimizer, None, loader, None, num_epochs=1, progress=False)

    def never(*_: object) -> Tensor:
        raise AssertionError("a graph was prepared in a step")

    monkeypatch.setattr(Graph, "_prepare", never)
    monkeypatch.setattr(Graph, "__init__", never)
    train_hierarchical(model, optimizer, None, loader, None, num_epochs=1, progress=False)


@pytest.mark.parametrize("share_days", [None, True, False])
@pytest.mark.parametrize("steps", [4, 3])
def test_a_model_that_reads_features_before_time_trains_alike(share_days: bool | None, steps: int) -> None:
    """Three features and windows of three days fit either layout."""
    losses = []
    for layout in ("NTF", "NFT"):
        torch.manual_seed(0)
        model = hiermt.TGCN_HierarchicalMT(3, 4, layout=layout)
        found = _train(model, steps, share_days if layout == "NFT" else False)
        losses.append(found)
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]))


def test_a_model_of_pyg_trains_on_windows_as_ours() -> None:
    pyg = pytest.importorskip("hiermt.testing.pyg")
    torch.manual_seed(0)
    ours = hiermt.TGCN_HierarchicalMT(3, 4)
    theirs = pyg.like(ours)
    torch.testing.assert_close(torch.tensor(_train(theirs, 4)), torch.tensor(_train(ours, 4)), rtol=1e-4, atol=1e-5)


def _train(model: torch.nn.Module, steps: int, share_days: bool | None = None) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    series = torch.randn(6, 20, 3, generator=generator)
    edge_index, weight = hiermt.testing.stock_graph(6, 10, 1)
    labels = torch.randint(0, 2, (6, 20), generator=generator)
    dataset = hiermt.data.WindowDataset(series, edge_index, weight, steps, labels, 1 - labels)
    loader = hiermt.data.WindowLoader(dataset, range(12), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_losses, *_ = hiermt.train_hierarchical(
        model, optimizer, None, loader, None, 3, progress=False, share_days=share_days
    )
    return train_losses
