"""Graphs without an edge, of equal parts, of one part: PyG's numbers through every way into the model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hiermt import (
    DynamicGraph,
    Graph,
    LivePredictor,
    MultiTaskLoss,
    TGCN_HierarchicalMT,
    Windows,
    data,
    functional,
    inference_hierarchical,
    predict_rolling,
    reference,
    train_hierarchical,
)
from hiermt.testing import assert_close, batched, stock_graph

pyg = pytest.importorskip("hiermt.testing.pyg")

FEATURES, DAYS, WINDOW = 3, 14, 4
STARTS = [7, 0, 1, 1, 10]
VARIANTS = [
    {},
    {"layers_nb": 1, "conv_layers": 1, "edge_dim": None, "conv_activation": "after"},
    {"use_gat": False},
]
Edges = tuple[Tensor, "Tensor | None", int]


def graphs() -> dict[str, Edges]:
    """Edges, weights and number of nodes under the name of what is odd about them."""
    none, triangle = torch.zeros(2, 0, dtype=torch.int64), torch.tensor([[0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2]])
    ones, uneven = torch.ones(6), torch.rand(6, generator=torch.Generator().manual_seed(0))
    shuffle = torch.tensor([4, 7, 0, 8, 2, 5, 1, 3, 6])
    three = batched(triangle, ones, 3, 3)
    loops = torch.arange(4).repeat(2, 1)
    ring = torch.stack([torch.arange(4), torch.arange(1, 5) % 4])
    twice = batched(torch.tensor([[0, 0, 1, 1], [1, 1, 0, 1]]), torch.tensor([0.5, 0.25, 1.0, 2.0]), 2, 3)
    unlike = three[1].clone()  # type: ignore[union-attr]
    unlike[-1] = 0.5
    return {
        "no edge, 2 nodes": (none, None, 2),
        "no edge, 9 nodes": (none, torch.zeros(0), 9),
        "1 node": (none, None, 1),
        "1 node with a loop": (torch.zeros(2, 1, dtype=torch.int64), torch.tensor([0.5]), 1),
        "loops only": (loops, torch.full((4,), 0.5), 4),
        "3 equal parts": (*three, 9),
        "3 equal parts without weights": (three[0], None, 9),
        "3 equal parts of uneven weights": (*batched(triangle, uneven, 3, 3), 9),
        "3 equal parts, shuffled": (shuffle[three[0]], three[1], 9),
        "3 equal parts, interleaved": (
            triangle.repeat(1, 3) * 3 + torch.arange(3).repeat_interleave(6),
            ones.repeat(3),
            9,
        ),
        "3 parts, one weight differs": (three[0], unlike, 9),
        "3 parts of duplicates and loops": (*twice, 6),
        "2 rings, one the other way round": (torch.cat([ring, ring.flip(0) + 4], dim=1), None, 8),
        "one part": (triangle, uneven, 3),
        "part and isolated nodes": (triangle, ones, 6),
        "stocks": (*stock_graph(9, 24), 9),
        "2 copies of stocks": (*batched(*stock_graph(6, 12), 6, 2), 12),
    }


@pytest.fixture(params=graphs())
def edges(request: pytest.FixtureRequest) -> Edges:
    return graphs()[request.param]


@pytest.fixture(params=VARIANTS, ids=["gat", "gat without edge term", "gcn"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


def fitting(edges: Edges, options: dict[str, Any]) -> Edges:
    return edges[0], None if options.get("edge_dim", 1) is None else edges[1], edges[2]


def make(options: dict[str, Any], dtype: torch.dtype = torch.float64, backend: str = "auto") -> TGCN_HierarchicalMT:
    torch.manual_seed(3)
    model = TGCN_HierarchicalMT(FEATURES, 5, backend=backend, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)


def history(nodes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(nodes, DAYS, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def oracle(model: TGCN_HierarchicalMT, x: Tensor, edges: Edges) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Logits ``[B, N, 2]`` of PyG in float64 on the union of the windows' graphs, and the gradients of their loss."""
    theirs = pyg.like(copy.deepcopy(model).double())
    x = x.detach().double().requires_grad_()
    weight = None if edges[1] is None else edges[1].detach().double().requires_grad_()
    outs = by_pyg(theirs, x, (edges[0], weight, edges[2]))
    loss(outs).backward()
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    return [out.detach() for out in outs], {
        **grads,
        "x": x.grad,
        "edge_weight": None if weight is None else weight.grad,
    }


def by_pyg(theirs: pyg.HierarchicalMT, x: Tensor, edges: Edges) -> list[Tensor]:
    edge_index, weight = batched(*edges, x.size(0))
    return [out.view(*x.shape[:2], 2) for out in theirs(x.flatten(0, 1), edge_index, weight)]


def loss(outs: Any) -> Tensor:
    return outs[0].square().sum() + outs[1].sin().sum()  # type: ignore[no-any-return]


def check_gradient(found: Tensor | None, expected: Tensor | None, name: str) -> None:
    if expected is None or not expected.numel():
        assert found is None or not found.any(), name
    elif found is None:
        assert not expected.any(), name
    elif found.dtype in (torch.float32, torch.float64):
        assert_close(found, expected, gradient=True, message=name)
    else:
        assert (found.double() - expected).norm() <= 0.05 * expected.norm() + 0.05, name


@pytest.mark.hostile("equal-parts")
@pytest.mark.parametrize(
    ("dtype", "trained_weights"),
    [(torch.float64, True), (torch.float64, False), (torch.float32, False), (torch.bfloat16, False)],
)
def test_windows_give_the_numbers_of_pyg(
    backend: str, options: dict[str, Any], edges: Edges, dtype: torch.dtype, trained_weights: bool
) -> None:
    edge_index, weight, nodes = fitting(edges, options)
    if trained_weights and weight is None:
        pytest.skip("no weights to train")
    if backend == "reference" and (dtype, trained_weights) in ((torch.float32, False), (torch.float64, False)):
        pytest.skip("the twin has one way for both")
    model, series = make(options, dtype, backend), history(nodes, dtype)
    expected, expected_grads = oracle(
        model, Windows(series, torch.tensor(STARTS), WINDOW).gather(), (edge_index, weight, nodes)
    )
    for sharing in (True, False):
        model.zero_grad()
        leaf = series.clone().requires_grad_()
        weight = None if weight is None else weight.detach().to(dtype).requires_grad_(trained_weights)
        windows = Windows(leaf, torch.tensor(STARTS), WINDOW)
        outs = model(windows if sharing else windows.gather(), Graph(edge_index, weight, nodes))
        for got, want in zip(outs, expected, strict=True):
            assert got.shape == (len(STARTS), nodes, 2) and got.dtype == dtype
            assert_close(got, want)
        loss(outs).backward()
        for name, parameter in model.named_parameters():
            check_gradient(parameter.grad, expected_grads[name], name)
        days = torch.zeros(nodes, DAYS, FEATURES, dtype=torch.float64)
        for at, start in enumerate(STARTS):
            days[:, start : start + WINDOW] += expected_grads["x"][at]
        check_gradient(leaf.grad, days, "series")
        if trained_weights:
            check_gradient(weight.grad, expected_grads["edge_weight"], "edge_weight")  # type: ignore[union-attr]


@pytest.mark.hostile("equal-parts")
def test_every_way_in_forward(backend: str, options: dict[str, Any], edges: Edges) -> None:
    edge_index, weight, nodes = edges = fitting(edges, options)
    model, series = make(options, backend=backend), history(nodes)
    windows = Windows(series, torch.arange(DAYS - WINDOW + 1), WINDOW)
    x, graph = windows.gather(), Graph(edge_index, weight if weight is None else weight.double(), nodes)
    weight = graph.edge_weight
    expected, _ = oracle(model, x, edges)
    batch_index, batch_weight = batched(edge_index, weight, nodes, x.size(0))
    ways = {
        "windows": model(windows, graph),
        "windows, raw edges": model(windows, edge_index, weight),
        "batch": model(x, graph),
        "one by one": [torch.stack(parts) for parts in zip(*(model(one, graph) for one in x[:2]), strict=True)],
        "union": [out.view(x.size(0), nodes, 2) for out in model(x.flatten(0, 1), batch_index, batch_weight)],
    }
    for name, outs in ways.items():
        for got, want in zip(outs, expected, strict=True):
            assert_close(got, want[: got.size(0)], message=name)

    probabilities, predictions, confidences = reference.decision_from_logits(*expected, 0.5)
    live = LivePredictor(model, graph, WINDOW)
    days = [live.append(day) for day in series.unbind(1)]
    assert days[: WINDOW - 1] == [None] * (WINDOW - 1)
    after = days[WINDOW - 1 :]
    decided: dict[str, Any] = {
        "decide": model.decide(windows, graph),
        "rolling": predict_rolling(model, series, graph, WINDOW),
        "rolling in chunks": predict_rolling(model, series, graph, WINDOW, chunk=3),
        "rolling, one block": predict_rolling(model, series, DynamicGraph([(0, graph)]), WINDOW),
        "live": [torch.cat(parts) for parts in zip(*after, strict=True)],
    }
    for name, found in decided.items():
        assert torch.equal(found[0], predictions), name
        assert_close(found[1], confidences, message=name)
        assert_close(found[2], probabilities, message=name)


def labels(nodes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randint(2, (nodes, DAYS), generator=generator) for _ in range(2))  # type: ignore[return-value]


def trained_by_pyg(model: TGCN_HierarchicalMT, loader: data.WindowLoader, epochs: int) -> pyg.HierarchicalMT:
    theirs = pyg.like(model)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.3)
    criterion = MultiTaskLoss()
    for _ in range(epochs):
        for batch in loader:
            edges = batch.edge_index, batch.edge_weight, batch.graph.num_nodes
            logits = [out.flatten(0, 1) for out in by_pyg(theirs, batch.x, edges)]
            targets = batch.signal_labels.flatten(), batch.direction_labels.flatten()
            optimizer.zero_grad()
            criterion(*logits, *targets, signal_mask=targets[0] == 1)[0].backward()
            optimizer.step()
    return theirs


@pytest.mark.hostile("equal-parts")
@pytest.mark.parametrize("name", ["no edge, 2 nodes", "1 node", "3 equal parts", "3 equal parts, shuffled"])
@pytest.mark.parametrize("share_days", [None, True, False])
def test_training_follows_pyg(backend: str, options: dict[str, Any], name: str, share_days: bool | None) -> None:
    edge_index, weight, nodes = fitting(graphs()[name], options)
    weight = None if weight is None else weight.double()
    source = data.WindowDataset(history(nodes), edge_index, weight, WINDOW, *labels(nodes))
    check_training(source, make(options, backend=backend), share_days)


@pytest.mark.parametrize("share_days", [None, True, False])
@pytest.mark.parametrize("options", [{}, {"use_gat": False}], ids=["gat", "gcn"])
def test_a_calm_block_in_the_middle_of_a_training(
    backend: str, options: dict[str, Any], share_days: bool | None
) -> None:
    none = Graph(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64), 9)
    blocks = []
    for seed in (0, 1):
        edge_index, weight = stock_graph(9, 24, seed=seed)
        blocks.append(Graph(edge_index, weight.double(), 9))
    changing = DynamicGraph([(0, blocks[0]), (6, none), (10, blocks[1])])
    model = make(options, backend=backend)
    source = data.WindowDataset.with_graphs(history(9), changing, WINDOW, *labels(9))
    check_training(source, model, share_days)
    found = predict_rolling(model, source.series, changing, WINDOW, chunk=2)
    for start in range(DAYS - WINDOW + 1):
        graph = changing.at(start + WINDOW - 1)
        theirs = pyg.like(model)(source.series[:, start : start + WINDOW], graph.edge_index, graph.edge_weight)
        probabilities, _, _ = reference.decision_from_logits(*theirs, 0.5)
        assert_close(found.probabilities[start], probabilities)


def check_training(source: data.WindowDataset, model: TGCN_HierarchicalMT, share_days: bool | None) -> None:
    def loader() -> data.WindowLoader:
        return data.WindowLoader(source, batch_size=4, shuffle=True, seed=5)

    theirs = trained_by_pyg(model, loader(), 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    train_hierarchical(model, optimizer, None, loader(), loader(), 1, progress=False, share_days=share_days)
    for (name, found), expected in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    batch = data.WindowLoader(source, batch_size=64).gather(torch.arange(3))
    predictions, confidences, _ = inference_hierarchical(model, batch)
    expected = model.decide(batch.x, batch.graph)
    assert torch.equal(predictions, expected[0])
    assert_close(confidences, expected[1])


@pytest.mark.parametrize(("starts", "days", "steps"), [([], 5, 3), ([0, 2], 5, 0), ([], 0, 0), ([0], 0, 0)], ids=str)
@pytest.mark.parametrize("nodes", [0, 1, 6])
def test_nothing_to_compute(backend: str, nodes: int, starts: list[int], days: int, steps: int) -> None:
    for options in VARIANTS:
        model = make(options, backend=backend)
        graph = Graph(torch.zeros(2, 0, dtype=torch.int64), None, nodes)
        series = torch.zeros(nodes, days, FEATURES, dtype=torch.float64, requires_grad=True)
        windows = Windows(series, torch.tensor(starts, dtype=torch.int64), steps)
        outs, expected = model(windows, graph), model(windows.gather(), graph)
        for got, want in zip(outs, expected, strict=True):
            assert got.shape == (len(starts), nodes, 2)
            assert_close(got, want)
        loss(outs).backward()
        assert model.decide(windows, graph)[2].shape == (len(starts), nodes, 4)


def test_more_nodes_than_the_graph_are_refused_or_repeat_it(backend: str) -> None:
    """A multiple of the nodes of a Graph is a mistake to a model, and a batch to the functions below it."""
    model, graph = make({"use_gat": False}, backend=backend), Graph(torch.zeros(2, 0, dtype=torch.int64), None, 2)
    series = history(4)
    for x in (series, Windows(series, torch.tensor([0]), WINDOW)):
        with pytest.raises(ValueError, match="x has 4 nodes, the Graph has 2"):
            model(x, graph)
    cell = model.tgcn_backbone.cells[0]
    found = cell.run_sequence(series, graph, cell.op_parameters(), sequence=True)  # type: ignore[operator]
    for part in (slice(0, 2), slice(2, 4)):
        assert_close(found[part], cell.run_sequence(series[part], graph, cell.op_parameters(), sequence=True))  # type: ignore[operator]
    with pytest.raises(ValueError, match="windows of 4 stocks, but the graph has 2 nodes"):
        cell.run_sequence(Windows(series, torch.tensor([0]), WINDOW), graph, cell.op_parameters(), sequence=True)  # type: ignore[operator]


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_both_forms_of_the_rows_are_kept(backend: str, order: tuple[bool, bool]) -> None:
    graph = Graph(*batched(*stock_graph(5, 8), 5, 3), 15, backend=backend)
    first = [graph.csr(reference.GCN_RULE, True, torch.float32, whole=whole) for whole in order]
    again = [graph.csr(reference.GCN_RULE, True, torch.float32, whole=whole) for whole in order]
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert [entries.rowptr.numel() - 1 for entries in first] == [15 if whole else 5 for whole in order]
    alone = Graph(*stock_graph(5, 8), 5, backend=backend)
    whole, cut = (alone.csr(reference.GCN_RULE, True, torch.float32, whole=whole) for whole in (True, False))
    assert whole is cut


def test_weights_changed_in_place_reach_both_forms(backend: str) -> None:
    edge_index, weight, nodes = graphs()["3 equal parts"]
    weight = weight.double()  # type: ignore[union-attr]
    graph, model = Graph(edge_index, weight, nodes), make({}, backend=backend)
    windows = Windows(history(nodes), torch.tensor(STARTS), WINDOW)
    for value in (0.5, 0.25):
        weight[0 if value == 0.25 else slice(None)] = value
        for got, want in zip(
            model(windows, graph), oracle(model, windows.gather(), (edge_index, weight, 9))[0], strict=True
        ):
            assert_close(got, want)


def test_compiled() -> None:
    edge_index, _, nodes = graphs()["3 equal parts"]
    model, graph = make({"use_gat": False, "layers_nb": 1}), Graph(edge_index, None, nodes)
    series, starts = history(nodes), torch.tensor(STARTS)

    def run(series: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        return model(Windows(series, starts, WINDOW), graph)  # type: ignore[no-any-return]

    torch._dynamo.reset()
    found = torch.compile(run, backend="aot_eager")(series, starts)
    for got, want in zip(found, run(series, starts), strict=True):
        assert_close(got, want)


@pytest.fixture
def calm() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", data.DataWarning)
        yield


def test_correlations_that_leave_no_edge(calm: None, backend: str) -> None:
    returns = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    edge_index, weight = data.correlation_graph(returns, 0.99)
    assert not edge_index.size(1)
    model, series = make({}, backend=backend), history(5)
    found = functional.tgcn_layer(
        Windows(series, torch.tensor(STARTS), WINDOW),
        Graph(edge_index, weight, 5),
        model.tgcn_backbone.cells[0].gcn.op_parameters(),  # type: ignore[operator, union-attr]
        model.tgcn_backbone.cells[0].gates(),  # type: ignore[operator]
        backend=backend,
    )
    assert found.shape == (len(STARTS) * 5, WINDOW, 5)
    outs = model(Windows(series, torch.tensor(STARTS), WINDOW), Graph(edge_index, weight.double(), 5))
    x = Windows(series, torch.tensor(STARTS), WINDOW).gather()
    for got, want in zip(outs, oracle(model, x, (edge_index, weight, 5))[0], strict=True):
        assert_close(got, want)
