"""Windows with shared days: decisions for a history and for each new day, and a training step.

Run ``pytest bench/test_rolling.py --benchmark-only``; figures are medians of wall-clock time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hiermt
from hiermt import DynamicGraph, Graph, LivePredictor, TGCN_HierarchicalMT, Windows, predict_rolling
from hiermt.functional import gather_windows
from hiermt.testing import stock_graph

WINDOW, FEATURES = 25, 13
# windows, stocks, edges, windows in a batch
CASES = {"8288x20": (8288, 20, 120, 160), "1000x100": (1000, 100, 720, 32)}


def problem(case: str, use_gat: bool) -> tuple[TGCN_HierarchicalMT, torch.Tensor, Graph]:
    windows, stocks, edges, _ = CASES[case]
    torch.manual_seed(0)
    graph = Graph(*stock_graph(stocks, edges, 1), stocks)
    return (
        TGCN_HierarchicalMT(FEATURES, use_gat=use_gat).eval(),
        torch.randn(stocks, windows + WINDOW - 1, FEATURES),
        graph,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("convolution", ["gatv2", "gcn"])
@pytest.mark.parametrize("how", ["batches", "rolling", "rolling-20-graphs"])
def test_history(benchmark: Any, machine: dict[str, Any], case: str, convolution: str, how: str) -> None:
    model, series, graph = problem(case, convolution == "gatv2")
    windows, stocks, edges, batch = CASES[case]

    def batches() -> None:
        for first in range(0, windows, batch):
            starts = torch.arange(first, min(first + batch, windows))
            model.decide(gather_windows(series, starts, WINDOW), graph)

    if how == "rolling-20-graphs":
        length = windows // 20
        days = [0, *range(WINDOW + length, WINDOW + 20 * length, length)]
        changing = DynamicGraph([(day, Graph(*stock_graph(stocks, edges, 1, day), stocks)) for day in days])
        run = lambda: predict_rolling(model, series, changing, WINDOW)  # noqa: E731
    else:
        run = batches if how == "batches" else lambda: predict_rolling(model, series, graph, WINDOW)
    benchmark.group = f"{case} {convolution}"
    benchmark.extra_info.update(machine, stocks=windows * stocks, competitor=how)
    benchmark.pedantic(run, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("stocks", [20, 100])
@pytest.mark.parametrize("how", ["append a day", "one window"])
def test_live(benchmark: Any, machine: dict[str, Any], stocks: int, how: str) -> None:
    model, series, graph = problem(next(name for name, case in CASES.items() if case[1] == stocks), True)
    live = LivePredictor(model, graph, WINDOW)
    live.extend(series[:, :WINDOW])
    run = (
        (lambda: live.append(series[:, 30]))
        if how == "append a day"
        else (lambda: model.decide(series[:, :WINDOW], graph))
    )
    benchmark.group = f"live {stocks}"
    benchmark.extra_info.update(machine, stocks=stocks, competitor=how)
    benchmark.pedantic(run, rounds=20, iterations=5, warmup_rounds=5)


@pytest.mark.parametrize("order", ["shuffled", "consecutive", "apart"])
@pytest.mark.parametrize("convolution", ["gatv2", "gcn"])
@pytest.mark.parametrize("how", ["copied", "shared"])
def test_training_step(benchmark: Any, machine: dict[str, Any], order: str, convolution: str, how: str) -> None:
    """Forward, loss, backward and Adam on 32 windows of 480 days x 100 stocks; apart: no day in two windows."""
    model, _, graph = problem("1000x100", convolution == "gatv2")
    model.train()
    optimizer, criterion = hiermt.training.adam(model), hiermt.MultiTaskLoss()
    series = torch.randn(100, 32 * WINDOW, FEATURES)
    signal, direction = torch.randint(2, (2, 3200)).unbind(0)
    days = {"shuffled": torch.randperm(480 - WINDOW + 1)[:32], "consecutive": torch.arange(32)}
    windows = Windows(series, days.get(order, torch.arange(32) * WINDOW), WINDOW)

    def run() -> None:
        logits = model(windows if how == "shared" else windows.gather(check=False), graph)
        terms = criterion.terms(*(part.reshape(-1, 2) for part in logits), signal, direction, signal == 1)
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        optimizer.step()

    benchmark.group = f"training step {order} {convolution}"
    benchmark.extra_info.update(machine, stocks=3200, competitor=how, days=windows.days().numel())
    benchmark.pedantic(run, rounds=20, iterations=1, warmup_rounds=3)


@pytest.mark.parametrize("how", ["native", "twin"])
@pytest.mark.parametrize("part", ["gather", "loss"])
def test_around_the_model(benchmark: Any, machine: dict[str, Any], part: str, how: str) -> None:
    """The parts of a training step of 32 windows x 100 stocks outside the model."""
    backend = "native" if how == "native" else "reference"
    series, starts = torch.randn(100, 640, FEATURES), torch.randperm(600)[:32]
    logits = [torch.randn(3200, 2, requires_grad=True) for _ in range(2)]
    signal, direction = torch.randint(2, (2, 3200)).unbind(0)
    criterion = hiermt.MultiTaskLoss(backend=backend)

    def loss() -> None:
        criterion.terms(*logits, signal, direction, signal == 1).total.backward()

    run = loss if part == "loss" else lambda: gather_windows(series, starts, WINDOW, backend=backend)
    benchmark.group = f"around the model: {part}"
    benchmark.extra_info.update(machine, stocks=3200, competitor=how)
    benchmark.pedantic(run, rounds=20, iterations=5, warmup_rounds=5)
