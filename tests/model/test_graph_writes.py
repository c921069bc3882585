"""A Graph is never stale, however its tensors were written to, and a copy of it is as good as itself."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import testing

NODES, FEATURES = 20, 5


@pytest.fixture(params=["gat", "gcn"])
def model(request: pytest.FixtureRequest, backend: str) -> hiermt.TGCN_HierarchicalMT:
    return hiermt.TGCN_HierarchicalMT(FEATURES, 8, use_gat=request.param == "gat", backend=backend).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(NODES, 6, FEATURES)


def check(model: Any, x: Tensor, actual: Any, edge_index: Tensor, edge_weight: Tensor | None) -> None:
    """`actual` is what a new Graph of copies gives."""
    with torch.inference_mode(False), torch.no_grad():
        weight = None if edge_weight is None else edge_weight.detach().clone()
        expected = model(x.clone(), hiermt.Graph(edge_index.clone(), weight, NODES))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def reverse(edge_index: Tensor, edge_weight: Tensor) -> None:
    edge_index.copy_(edge_index.flip(0).clone())
    edge_index[0, :7] = 3


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "weight.mul_": lambda _, weight: weight.mul_(0.3),
    "weight[i] = v": lambda _, weight: weight.__setitem__(4, 9.0),
    "weight.copy_": lambda _, weight: weight.copy_(torch.rand(weight.shape)),
    "view of weight": lambda _, weight: weight.view(-1, 2)[:, 0].fill_(0.2),
    "weight.view.mul_": lambda _, weight: weight.view(-1).mul_(0.1),
    "index.copy_": reverse,
    "index[i, j] = v": lambda index, _: index.__setitem__((0, 3), 0),
    "row of index": lambda index, _: index[1].fill_(2),
    "weight to NaN": lambda _, weight: weight.fill_(float("nan")),
}
INFERENCE = [True, False]


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("made", INFERENCE)
@pytest.mark.parametrize("index_too", [True, False])
def test_writes_in_place(model: Any, x: Tensor, write: Any, raw: bool, made: bool, index_too: bool) -> None:
    edge_index, edge_weight = testing.stock_graph(NODES, 60)
    # What is made under inference mode has no version, and may be changed there only.
    with torch.inference_mode() if made else nullcontext(), nullcontext() if made else torch.no_grad():
        edge_weight = edge_weight.clone()
        if index_too:
            edge_index = edge_index.clone()
        arguments = (edge_index, edge_weight) if raw else (hiermt.Graph(edge_index, edge_weight, NODES),)
        for _ in range(2):
            model(x, *arguments)
        for _ in range(2):
            write(edge_index, edge_weight)
            actual = model(x, *arguments)
            if edge_weight.isnan().any():
                assert all(logits.isnan().any() for logits in actual)
            else:
                check(model, x, actual, edge_index, edge_weight)
    with torch.no_grad():
        if not edge_weight.isnan().any():
            check(model, x, model(x, *arguments), edge_index, edge_weight)


@pytest.mark.hostile("edge-outside", "stale-graph")
@pytest.mark.parametrize("made", INFERENCE)
def test_an_index_out_of_range_is_found_after_a_write(model: Any, x: Tensor, made: bool) -> None:
    edge_index, edge_weight = testing.stock_graph(NODES, 60)
    with torch.inference_mode(made):
        edge_index = edge_index.clone()
        graph = hiermt.Graph(edge_index, edge_weight, NODES)
        model(x, graph)
        edge_index[1, 5] = NODES
        with pytest.raises(IndexError, match="edge_index"):
            model(x, graph)
        with pytest.raises(IndexError, match="edge_index"):
            model(x, edge_index, edge_weight)


def test_inference_tensors_that_stay_are_prepared_once(model: Any, x: Tensor) -> None:
    with torch.inference_mode():
        graph = hiermt.Graph(*[tensor.clone() for tensor in testing.stock_graph(NODES, 60)], NODES)
        model(x, graph)
        first = dict(graph._csr)
        model(x, graph)
        assert first and all(graph._csr[key] is entries for key, entries in first.items())


def test_a_graph_of_inference_tensors_trains(model: Any, x: Tensor) -> None:
    with torch.inference_mode():
        edge_index, edge_weight = (tensor.clone() for tensor in testing.stock_graph(NODES, 60))
        graph = hiermt.Graph(edge_index, edge_weight, NODES)
        model(x, graph)
    for arguments in ((graph,), (edge_index, edge_weight)):
        model.zero_grad()
        sum(logits.sum() for logits in model(x, *arguments)).backward()
        assert all(p.grad is not None for p in model.parameters())


def test_rolling_over_graphs_that_change_in_inference_mode(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(FEATURES, 8, backend=backend)
    series = torch.randn(NODES, 30, FEATURES)
    with torch.inference_mode():
        pairs = [tuple(t.clone() for t in testing.stock_graph(NODES, 60, seed=seed)) for seed in (0, 1)]
        graphs = hiermt.DynamicGraph([(10 * i, hiermt.Graph(*pair, NODES)) for i, pair in enumerate(pairs)])
        hiermt.predict_rolling(model, series, graphs, 6)
        live = hiermt.LivePredictor(model, graphs.graphs[1], 6)
        live.extend(series)
        pairs[1][1].mul_(0.1)
        actual = hiermt.predict_rolling(model, series, graphs, 6)
        live = hiermt.LivePredictor(model, graphs.graphs[1], 6)
        last = live.extend(series)
    new = hiermt.DynamicGraph([(10 * i, hiermt.Graph(*(t.clone() for t in p), NODES)) for i, p in enumerate(pairs)])
    expected = hiermt.predict_rolling(model, series, new, 6)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    testing.assert_close(last.probabilities[0], expected.probabilities[-1])


def swap(tensor: Tensor, other: Tensor) -> None:
    tensor.set_(other)


def assign(tensor: Tensor, other: Tensor) -> None:
    tensor.data = other


@pytest.mark.parametrize("change", [swap, assign])
@pytest.mark.parametrize("which", ["index", "weight"])
def test_other_memory_behind_a_raw_tensor(model: Any, x: Tensor, change: Any, which: str) -> None:
    edge_index, edge_weight = testing.stock_graph(NODES, 60)
    with torch.no_grad():
        for seed in range(1, 6):
            model(x, edge_index, edge_weight)
            other = testing.stock_graph(NODES, 60, seed=seed)
            change(*((edge_index, other[0]) if which == "index" else (edge_weight, other[1])))
            del other
            check(model, x, model(x, edge_index, edge_weight), edge_index, edge_weight)


def test_a_raw_tensor_that_is_resized(x: Tensor, backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(FEATURES, 8, use_gat=False, backend=backend)
    edge_index, _ = testing.stock_graph(NODES, 60)
    with torch.no_grad():
        for edges in (60, 30, 10, 50):
            edge_index.resize_(2, edges)
            check(model, x, model(x, edge_index), edge_index, None)


@pytest.mark.hostile("stale-graph")
def test_memory_that_is_used_again(model: Any, x: Tensor) -> None:
    with torch.no_grad():
        for seed in range(20):
            edge_index, edge_weight = testing.stock_graph(NODES, 60, seed=seed)
            check(model, x, model(x, edge_index, edge_weight), edge_index, edge_weight)
            check(model, x, model(x, edge_index.t().contiguous().t(), edge_weight), edge_index, edge_weight)
            del edge_index, edge_weight


@pytest.mark.hostile("edge-form", "strides")
def test_any_strides_and_integers(model: Any, x: Tensor) -> None:
    edge_index, edge_weight = testing.stock_graph(NODES, 60)
    wide, column = torch.zeros(2, 120, dtype=torch.int64), torch.zeros(60, 3)
    wide[:, ::2], column[:, 1] = edge_index, edge_weight
    indices = edge_index.t().contiguous().t(), wide[:, ::2], edge_index.int(), edge_index.flip(0).contiguous().flip(0)
    weights = edge_weight, edge_weight[:, None], column[:, 1], column[:, 1:2]
    with torch.no_grad():
        for index in indices:
            for weight in weights:
                check(model, x, model(x, index, weight), edge_index, edge_weight)
                check(model, x, model(x, hiermt.Graph(index, weight, NODES)), edge_index, edge_weight)


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8])
def test_whole_numbers_of_nodes(kind: Any) -> None:
    graph = hiermt.Graph(*testing.stock_graph(NODES, 60), kind(NODES))
    assert graph.num_nodes == NODES and type(graph.num_nodes) is int


@pytest.mark.hostile("scalars")
@pytest.mark.parametrize("bad", [True, False, np.True_, 20.0, np.float64(20), "20", torch.tensor(20), -1, np.int64(-1)])
def test_other_numbers_of_nodes_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="num_nodes"):
        hiermt.Graph(*testing.stock_graph(NODES, 60), bad)


def through_torch(graph: hiermt.Graph) -> hiermt.Graph:
    file = io.BytesIO()
    torch.save(graph, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda graph: pickle.loads(pickle.dumps(graph)),
    "torch.save": through_torch,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=list(COPIES))
@pytest.mark.parametrize("before", range(4))
def test_copies_are_not_stale(model: Any, x: Tensor, copied: Any, before: int) -> None:
    edge_index, edge_weight = (tensor.clone() for tensor in testing.stock_graph(NODES, 60))
    with torch.no_grad():
        for _ in range(before):
            edge_weight.mul_(0.9)
        graph = hiermt.Graph(edge_index, edge_weight, NODES)
        model(x, graph)
        edge_weight.mul_(0.3)
        edge_index[0, :5] = 1
        other = copied(graph)
        check(model, x, model(x, other), edge_index, edge_weight)
        other.edge_weight.mul_(2)
        check(model, x, model(x, other), other.edge_index, other.edge_weight)
        check(model, x, model(x, graph), graph.edge_index, graph.edge_weight)
        check(model, x, model(x, copied(graph)), graph.edge_index, graph.edge_weight)


class Graphs(torch.utils.data.Dataset[Any]):
    def __init__(self, graph: hiermt.Graph) -> None:
        self.graph = graph

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> hiermt.Graph:
        self.graph.csr(0, True, torch.float32)
        return self.graph


@pytest.mark.hostile("workers")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_workers_of_a_data_loader(model: Any, x: Tensor, start: str) -> None:
    """A fork has the memory of this process; one of the server gets all by pickle, as a spawned process does."""
    multiprocessing.set_forkserver_preload(["torch", "hiermt"])
    graph = hiermt.Graph(*testing.stock_graph(NODES, 60), NODES)
    with torch.no_grad():
        model(x, graph)
        loader = torch.utils.data.DataLoader(
            Graphs(graph), batch_size=None, num_workers=2, multiprocessing_context=start
        )
        for found in loader:
            check(model, x, model(x, found), graph.edge_index, graph.edge_weight)


@pytest.mark.hostile("workers")
def test_threads_prepare_one_graph_at_once(model: Any, x: Tensor) -> None:
    edge_index, edge_weight = testing.stock_graph(NODES, 60)
    with torch.no_grad():
        expected = model(x, hiermt.Graph(edge_index, edge_weight, NODES))
    results, failures = [], []
    for raw in (False, True):
        for _ in range(10):
            graph = hiermt.Graph(edge_index, edge_weight, NODES)
            arguments = (edge_index.clone(), edge_weight) if raw else (graph,)
            barrier = threading.Barrier(4)

            def run(arguments: Any = arguments, barrier: threading.Barrier = barrier) -> None:
                try:
                    barrier.wait()
                    with torch.no_grad():
                        results.append(model(x, *arguments))
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=run) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert not failures and len(results) == 80
    assert all(torch.equal(a, b) for found in results for a, b in zip(found, expected, strict=True))


def test_what_one_thread_prepared_before_a_write_is_not_kept_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    edge_index, edge_weight = testing.stock_graph(NODES, 60)
    graph = hiermt.Graph(edge_index, edge_weight, NODES)
    prepare = graph._prepare

    def slow(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        entries = prepare(*arguments, **options)
        # Meanwhile another thread writes, and prepares what it wrote.
        edge_weight.mul_(0.5)
        graph.csr(0, True, torch.float64)
        return entries

    monkeypatch.setattr(graph, "_prepare", slow)
    graph.csr(0, True, torch.float32)
    expected = hiermt.Graph(edge_index, edge_weight, NODES).csr(0, True, torch.float32)
    assert torch.equal(graph.csr(0, True, torch.float32).weight, expected.weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_that_moves_under_inference_mode_trains() -> None:
    model = hiermt.TGCN_HierarchicalMT(FEATURES, 8).cuda()
    with torch.inference_mode():
        graph = hiermt.Graph(*testing.stock_graph(NODES, 60), NODES).to("cuda")
    assert not graph.edge_index.is_inference()
    sum(logits.sum() for logits in model(torch.randn(NODES, 6, FEATURES, device="cuda"), graph)).backward()
