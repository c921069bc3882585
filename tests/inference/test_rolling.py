"""Rolling and live decisions against the model on each window."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from hiermt import DynamicGraph, Graph, LivePredictor, TGCN_HierarchicalMT, Windows, predict_rolling
from hiermt.inference.rolling import Decisions
from hiermt.testing import assert_close, stock_graph

STOCKS, DAYS, FEATURES, WINDOW = 12, 40, 5, 7


def make(backend: str = "auto", dtype: torch.dtype = torch.float64, **options: object) -> TGCN_HierarchicalMT:
    options = {"hidden_size": 8, "use_gat": True, **options}
    model = TGCN_HierarchicalMT(FEATURES, backend=backend, **options).to(dtype)
    graph = stocks(weighted=options.get("edge_dim", 1) is not None)
    x = history(dtype)[:, :WINDOW]
    x = x.transpose(1, 2) if options.get("layout") == "NFT" else x
    with torch.no_grad():  # decisions of every class, not Neutral all over
        for i, head in enumerate((model.signal_head, model.direction_head)):
            head.weight.mul_(20)
            head.bias.sub_(model(x, graph)[i].median(0).values)
    return model


def history(dtype: torch.dtype = torch.float64, days: int = DAYS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STOCKS, days, FEATURES, dtype=torch.float64, generator=generator).to(dtype)


def stocks(seed: int = 0, weighted: bool = True) -> Graph:
    edge_index, edge_weight = stock_graph(STOCKS, 40, 2, seed)
    return Graph(edge_index, edge_weight if weighted else None, STOCKS)


def one_by_one(model: TGCN_HierarchicalMT, series: Tensor, graph: object, window: int, stride: int = 1) -> Decisions:
    rows = []
    for start in range(0, series.size(1) - window + 1, stride):
        used = graph.at(start + window - 1) if isinstance(graph, DynamicGraph) else graph
        predictions, confidences, probabilities = model.decide(series[:, start : start + window], used)
        rows.append((predictions, confidences, probabilities))
    return Decisions(*(torch.stack(column) for column in zip(*rows, strict=True)))


def check(found: Decisions, expected: Decisions) -> None:
    assert_close(found.probabilities, expected.probabilities)
    assert_close(found.confidences, expected.confidences)
    # Where the two classes are a rounding apart, either is right.
    clear = (expected.probabilities[..., 1] - 0.5).abs().minimum((expected.probabilities[..., 3] - 0.5).abs()) > 1e-3
    assert torch.equal(found.predictions[clear], expected.predictions[clear])


@pytest.mark.hostile("equal-parts")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers_nb": 1},
        {"layers_nb": 3, "hidden_size": 17},
        {"use_gat": False},
        {"conv_layers": 1, "edge_dim": None, "conv_activation": "after"},
        {"layout": "NFT"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_windows_one_by_one(backend: str, options: dict[str, object], dtype: torch.dtype) -> None:
    model, series = make(backend, dtype, **options), history(dtype)
    graph = stocks(weighted=options.get("edge_dim", 1) is not None)
    found = predict_rolling(model, series, graph, WINDOW)
    assert found.predictions.shape == (DAYS - WINDOW + 1, STOCKS)
    assert len(found.predictions.unique()) > 1
    shown = series if options.get("layout") != "NFT" else None
    if shown is None:
        model.tgcn_backbone.layout = "NTF"
        shown = series
    check(found, one_by_one(model, shown, graph, WINDOW))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("stride", [1, 2, WINDOW, WINDOW + 3, 100])
def test_any_chunk_and_stride(backend: str, chunk: int, stride: int) -> None:
    model, series, graph = make(backend), history(), stocks()
    found = predict_rolling(model, series, graph, WINDOW, stride, chunk=chunk)
    check(found, one_by_one(model, series, graph, WINDOW, stride))


def test_chunks_change_nothing_beyond_rounding_and_runs_change_nothing(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    first = predict_rolling(model, series, graph, WINDOW, chunk=4)
    for one, other in zip(first, predict_rolling(model, series, graph, WINDOW, chunk=4), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("days", [WINDOW, WINDOW + 1])
def test_shortest_history(backend: str, days: int) -> None:
    model, series, graph = make(backend), history(days=days), stocks()
    check(predict_rolling(model, series, graph, WINDOW), one_by_one(model, series, graph, WINDOW))


def test_window_of_one_day_and_strided_series(backend: str) -> None:
    model, graph = make(backend), stocks()
    series = history(days=2 * DAYS)[:, ::2].transpose(0, 1).contiguous().transpose(0, 1)
    check(predict_rolling(model, series, graph, 1), one_by_one(model, series, graph, 1))


def test_threshold(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    assert (predict_rolling(model, series, graph, WINDOW, threshold=1.0).predictions == 1).all()
    assert (predict_rolling(model, series, graph, WINDOW, threshold=0.0).predictions != 1).all()


def test_graphs_that_change(backend: str) -> None:
    model, series = make(backend), history()
    graph = DynamicGraph([(0, stocks(0)), (WINDOW + 2, stocks(1)), (WINDOW + 3, stocks(2)), (30, stocks(3))])
    expected = one_by_one(model, series, graph, WINDOW)
    check(predict_rolling(model, series, graph, WINDOW, chunk=3), expected)
    check(predict_rolling(model, series, graph, WINDOW), expected)
    with pytest.raises(AssertionError):
        check(predict_rolling(model, series, stocks(0), WINDOW), expected)


def test_a_day_at_a_time(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    expected = one_by_one(model, series, graph, WINDOW)
    live = LivePredictor(model, graph, WINDOW)
    for day in range(DAYS):
        decided = live.append(series[:, day])
        if day < WINDOW - 1:
            assert decided is None
        else:
            at = day - WINDOW + 1
            check(decided, Decisions(*(column[at : at + 1] for column in expected)))


@pytest.mark.parametrize("window", [WINDOW, FEATURES])
def test_live_in_the_other_layout(backend: str, window: int) -> None:
    """Days before features whatever the layout, also where there are as many of one as of the other."""
    model, series, graph = make(backend, layout="NFT"), history(), stocks()
    same = make(backend)
    same.load_state_dict(model.state_dict())
    live, expected = LivePredictor(model, graph, window), predict_rolling(same, series, graph, window)
    check(predict_rolling(model, series, graph, window), expected)
    decided = [live.append(day) for day in series.unbind(1)][window - 1 :]
    check(Decisions(*(torch.cat(column) for column in zip(*decided, strict=True))), expected)


def test_live_starts_with_a_history(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    live = LivePredictor(model, graph, WINDOW)
    assert live.extend(series[:, :3]) is None
    decided = live.extend(series[:, 3:])
    check(decided, Decisions(*(column[-1:] for column in one_by_one(model, series, graph, WINDOW))))


def test_no_gradients(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    model.train()
    found = predict_rolling(model, series, graph, WINDOW)
    assert not found.probabilities.requires_grad and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_refuses_what_does_not_fit(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    with pytest.raises(ValueError, match="6 days are fewer than the 7 of a window"):
        predict_rolling(model, series[:, :6], graph, WINDOW)
    with pytest.raises(ValueError, match="has 11 stocks, the graph 12 nodes"):
        predict_rolling(model, series[1:], graph, WINDOW)
    with pytest.raises(ValueError, match=r"expected \[stocks, days, 5\]"):
        predict_rolling(model, series[..., :4], graph, WINDOW)
    for name in ("window", "stride", "chunk"):
        with pytest.raises(ValueError, match=f"{name}: expected 1 or more, got 0"):
            predict_rolling(model, series, graph, **{name: 0})
    with pytest.raises(ValueError, match="threshold"):
        predict_rolling(model, series, graph, WINDOW, threshold=2.0)
    with pytest.raises(TypeError, match=r"hiermt\.Graph"):
        predict_rolling(model, series, graph.edge_index, WINDOW)
    with pytest.raises(TypeError, match="float32"):
        predict_rolling(model, series.float(), graph, WINDOW)
    with pytest.raises(IndexError, match="day 6 lies before the first graph"):
        predict_rolling(model, series, DynamicGraph([(9, graph)]), WINDOW)


def test_refuses_other_kinds_of_arguments(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    for name in ("window", "stride", "chunk"):
        for value in (2.0, True, "3"):
            with pytest.raises(TypeError, match=f"{name}: expected an integer"):
                predict_rolling(model, series, graph, **{"window": WINDOW, name: value})
    with pytest.raises(TypeError, match=r"model: expected a hiermt\.TGCN_HierarchicalMT, got TGCN"):
        predict_rolling(model.tgcn_backbone, series, graph, WINDOW)
    with pytest.raises(TypeError, match="series: expected a Tensor, got list"):
        predict_rolling(model, series.tolist(), graph, WINDOW)
    with pytest.raises(ValueError, match=r"series is on cpu, the model on meta|the model is on meta, the graph on cpu"):
        predict_rolling(make(backend).to("meta"), series, graph, WINDOW)


def test_live_refuses_what_does_not_fit_and_appends_nothing(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    for options, error, message in (
        ({"window": 0}, ValueError, "window: expected 1 or more, got 0"),
        ({"window": 2.5}, TypeError, "window: expected an integer"),
        ({"threshold": 1.5}, ValueError, "threshold: expected a number in"),
        ({"graph": graph.edge_index}, TypeError, r"graph: expected a hiermt\.Graph"),
        ({"graph": DynamicGraph([(0, graph)])}, TypeError, r"graph: expected a hiermt\.Graph, got DynamicGraph"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "model: expected"),
    ):
        with pytest.raises(error, match=message):
            LivePredictor(**{"model": model, "graph": graph, "window": WINDOW, **options})
    live = LivePredictor(model, graph, WINDOW)
    live.extend(series[:, : WINDOW - 1])
    for day, error, message in (
        (series[:, :2], ValueError, r"day: expected \[stocks, 5\], got \[12, 2, 5\]"),
        (series[:, 0, :4], ValueError, r"day: expected \[stocks, 5\], got \[12, 4\]"),
        (series[:5, 0], ValueError, "day: has 5 stocks, the graph 12 nodes"),
        (series[:, 0].float(), TypeError, r"day is torch\.float32, the model torch\.float64"),
        (series[:, 0].tolist(), TypeError, "day: expected a Tensor"),
        (series[:, 0].to("meta"), ValueError, "day is on meta"),
    ):
        with pytest.raises(error, match=message):
            live.append(day)
    broken = series[:, :3].clone()
    broken[2, 1, 0] = float("nan")
    with pytest.raises(ValueError, match="stock 2, day 1, feature 0"):
        live.extend(broken)
    with pytest.raises(ValueError, match=r"series: expected \[stocks, days, 5\]"):
        live.extend(series[:, 0])
    assert live.days == WINDOW - 1
    check(live.append(series[:, WINDOW - 1]), one_by_one(model, series[:, :WINDOW], graph, WINDOW))


@pytest.mark.parametrize("gap", [float("nan"), float("inf")])
def test_a_gap_is_named_and_nothing_is_appended(backend: str, gap: float) -> None:
    model, series, graph = make(backend), history(), stocks()
    live = LivePredictor(model, graph, WINDOW)
    live.extend(series[:, :20])
    series[3, 20, 1] = gap
    with pytest.raises(ValueError, match="stock 3, day 20, feature 1"):
        predict_rolling(model, series, graph, WINDOW)
    with pytest.raises(ValueError, match="stock 3, day 0, feature 1"):
        live.append(series[:, 20])
    assert live.days == WINDOW


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "got none"),
        ([(0, 12), (0, 12)], "increasing"),
        ([(5, 12), (0, 12)], "increasing"),
        ([(0, 12), (3, 9)], "expected 12 nodes in every graph, got 9"),
    ],
)
def test_dynamic_graph_refuses(blocks: list[tuple[int, int]], message: str) -> None:
    empty = torch.zeros(2, 0, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        DynamicGraph([(day, Graph(empty, num_nodes=nodes)) for day, nodes in blocks])


@pytest.mark.hostile("memory")
def test_memory_is_bounded_by_the_chunk(backend: str) -> None:
    """No call of the model sees more days than its chunk has, however long the history is."""
    model, graph = make(backend), stocks()
    seen: list[int] = []
    decide = model.decide

    def watched(windows: Windows, *rest: object, **options: object) -> object:
        seen.append(windows.series.size(1))
        return decide(windows, *rest, **options)

    model.decide = watched  # type: ignore[method-assign]
    predict_rolling(model, history(days=200), graph, WINDOW, chunk=5)
    assert max(seen) == 5 + WINDOW - 1


class Around(torch.nn.Module):
    """Passes on what it does not have itself, as wrappers of adapters and compilers do."""

    def __init__(self, model: TGCN_HierarchicalMT) -> None:
        super().__init__()
        self.inner = model

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)


def test_modules_around_a_model(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    expected = predict_rolling(model, series, graph, WINDOW)
    found = predict_rolling(Around(model), series, graph, WINDOW)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    decided = LivePredictor(Around(model), graph, WINDOW).extend(series)
    check(decided, Decisions(*(column[-1:] for column in expected)))


@pytest.mark.parametrize(
    ("model_dtype", "series_dtype", "autocast"),
    [
        (torch.float32, torch.float32, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float64, torch.float64, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16, None),
        (torch.float64, torch.float64, None),
    ],
)
@pytest.mark.parametrize("options", [{}, {"use_gat": False}], ids=str)
def test_dtypes_and_autocast_of_decide(
    backend: str,
    options: dict[str, object],
    model_dtype: torch.dtype,
    series_dtype: torch.dtype,
    autocast: torch.dtype | None,
) -> None:
    model, series, graph = make(backend, model_dtype, **options), history(series_dtype), stocks()
    context = contextlib.nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    windows = Windows(series, torch.arange(DAYS - WINDOW + 1), WINDOW)
    with context:
        expected = Decisions(*model.decide(windows, graph))
        found = predict_rolling(model, series, graph, WINDOW, chunk=7)
        live = LivePredictor(model, graph, WINDOW)
        days = [live.append(day) for day in series.unbind(1)][WINDOW - 1 :]
        # Rounds where the plain scan does; that over windows rounds what the gates take from a day, too.
        alone = one_by_one(model, series, graph, WINDOW)
        one = LivePredictor(model, graph, WINDOW).extend(series)
    live_found = Decisions(*(torch.cat(column) for column in zip(*days, strict=True)))
    for decided, wanted in ((found, expected), (live_found, alone)):
        assert [column.dtype for column in decided] == [column.dtype for column in expected]
        check(decided, wanted)
    check(one, Decisions(*(column[-1:] for column in alone)))


def test_live_follows_the_weights_of_model_and_graph(backend: str) -> None:
    model, series = make(backend), history()
    edge_index, edge_weight = stock_graph(STOCKS, 40, 2)
    edge_weight = edge_weight.double()
    graph = Graph(edge_index, edge_weight, STOCKS)
    live = LivePredictor(model, graph, WINDOW)
    live.extend(series[:, :20])
    with torch.no_grad():
        model.tgcn_backbone.cells[0].lin_u.bias.add_(0.5)
        edge_weight.mul_(0.25)
    check(live.append(series[:, 20]), one_by_one(model, series[:, 21 - WINDOW : 21], graph, WINDOW))


def test_live_appends_nothing_that_the_model_refuses(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    live = LivePredictor(model, graph, WINDOW)
    live.extend(series[:, :20])
    kept = live._kept
    decide = model.decide

    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("no")

    model.decide = broken  # type: ignore[method-assign]
    for take, what in ((live.append, series[:, 20]), (live.extend, series[:, 20:25])):
        with pytest.raises(RuntimeError, match="no"):
            take(what)
    assert live.days == WINDOW and live._kept is kept
    model.decide = decide  # type: ignore[method-assign]
    check(live.append(series[:, 20]), one_by_one(model, series[:, 21 - WINDOW : 21], graph, WINDOW))


def test_live_keeps_its_own_days_and_their_dtype(backend: str) -> None:
    model, series, graph = make(backend, torch.float32), history(torch.float32), stocks()
    live, mine = LivePredictor(model, graph, WINDOW), series.clone()
    live.extend(mine[:, : WINDOW - 1])
    mine.zero_()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(TypeError, match=r"day is torch\.bfloat16 on cpu, the earlier days are torch\.float32"),
    ):
        live.append(series[:, WINDOW - 1].bfloat16())
    assert live.extend(series[:, :0]) is None and live.days == WINDOW - 1
    check(live.append(series[:, WINDOW - 1]), one_by_one(model, series[:, :WINDOW], graph, WINDOW))


def test_in_inference_mode_and_after_it(backend: str) -> None:
    model, series, graph = make(backend), history(), stocks()
    expected = one_by_one(model, series, graph, WINDOW)
    live = LivePredictor(model, graph, WINDOW)
    with torch.inference_mode():
        check(predict_rolling(model, series, graph, WINDOW), expected)
        live.extend(series[:, : DAYS - 2])
    check(live.append(series[:, DAYS - 2]), Decisions(*(column[-2:-1] for column in expected)))
    sum(logits.sum() for logits in model(series[:, :WINDOW], graph)).backward()
