"""Rolling, live and single decisions on stocks that come and go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import Graph, LivePredictor, TGCN_HierarchicalMT, data, predict_rolling
from hiermt.testing import assert_close, stock_graph
from hiermt.training.tasks import Regression
from support import subgraphs

pytestmark = pytest.mark.hostile("absent")

STOCKS, DAYS, FEATURES, WINDOW = 10, 30, 4, 6


def model(**options: Any) -> TGCN_HierarchicalMT:
    torch.manual_seed(0)
    return TGCN_HierarchicalMT(FEATURES, 5, 2, **options).double()


def history() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    present = torch.rand(STOCKS, DAYS, generator=generator) < 0.7
    present[0, :12], present[1, 20:], present[2] = False, False, False
    series = torch.randn(STOCKS, DAYS, FEATURES, dtype=torch.float64, generator=generator)
    return series.masked_fill(~present.unsqueeze(-1), torch.nan), present


def edges() -> tuple[Tensor, Tensor]:
    index, weight = stock_graph(STOCKS, 30, 1)
    return index, weight.double()


GRAPH = Graph(*edges(), STOCKS)


@pytest.mark.parametrize("options", [{}, {"use_gat": False}, {"layout": "NFT"}], ids=str)
@pytest.mark.parametrize(("stride", "chunk"), [(1, None), (1, 4), (3, 2)])
def test_rolling_equals_pyg_on_subgraphs(options: dict[str, Any], stride: int, chunk: int | None) -> None:
    pyg = pytest.importorskip("hiermt.testing.pyg")
    own, (series, present) = model(**options), history()
    oracle = pyg.HierarchicalMT(FEATURES, 5, 2, use_gat=options.get("use_gat", True)).double()
    oracle.load_state_dict(own.state_dict())
    found = predict_rolling(own, series, GRAPH, WINDOW, stride, chunk=chunk, present=present)
    starts = range(0, DAYS - WINDOW + 1, stride)
    assert found.predictions.shape == (len(starts), STOCKS)
    for w, start in enumerate(starts):
        days = slice(start, start + WINDOW)
        logits = subgraphs.stepped(oracle, series[:, days], edges(), present[:, days])
        expected = torch.cat([one.softmax(-1) for one in logits], -1)
        there = present[:, start + WINDOW - 1]
        assert_close(found.probabilities[w, there], expected[there].detach())
        assert (found.predictions[w, ~there] == -1).all() and (found.predictions[w, there] >= 0).all()
        for one in (found.confidences, found.probabilities, found.classes):
            assert one[w, ~there].isnan().all() and one[w, there].isfinite().all()


def same(one: Any, other: Any, w: int) -> None:
    for found, expected in zip(one, other, strict=True):
        assert_close(found[0].double(), expected[w].double())


def test_live_equals_rolling() -> None:
    own, (series, present) = model(), history()
    rolling = predict_rolling(own, series, GRAPH, WINDOW, present=present)
    live = LivePredictor(own, GRAPH, WINDOW)
    for t in range(DAYS):
        found = live.append(series[:, t], present[:, t])
        if t >= WINDOW - 1:
            same(found, rolling, t - WINDOW + 1)
    live = LivePredictor(own, GRAPH, WINDOW)
    same(live.extend(series, present), rolling, DAYS - WINDOW)
    assert live.days == WINDOW


def test_a_feed_where_a_stock_is_missing_today_alone() -> None:
    """Days without a mask are days of all stocks."""
    own, series = model(), history()[0].nan_to_num(0.5)
    present = torch.ones(STOCKS, DAYS, dtype=torch.bool)
    present[3, 20] = False
    rolling = predict_rolling(own, series, GRAPH, WINDOW, present=present)
    live = LivePredictor(own, GRAPH, WINDOW)
    for t in range(DAYS):
        day = series[:, t].clone()
        if t == 20:
            day[3] = torch.nan
            with pytest.raises(ValueError, match=r"stock 3, day 0, feature 0 is NaN .* give present="):
                live.append(day)
        found = live.append(day, present[:, t]) if t == 20 else live.append(day)
        if t >= WINDOW - 1:
            same(found, rolling, t - WINDOW + 1)
            assert (found.predictions[0] == -1).tolist() == [t == 20 and s == 3 for s in range(STOCKS)]


def test_a_task_in_place_of_the_decision() -> None:
    torch.manual_seed(0)
    own, (series, present) = hiermt.TGCN(FEATURES, 1, 5).double(), history()
    found = predict_rolling(own, series, GRAPH, WINDOW, task=Regression(), present=present)["predictions"]
    live = LivePredictor(own, GRAPH, WINDOW, task=Regression())
    assert_close(live.extend(series, present)["predictions"][0], found[-1])
    assert torch.equal(found.isnan().squeeze(-1), ~present[:, WINDOW - 1 :].t())


def test_one_batch() -> None:
    own, (series, present) = model(), history()
    rolling = predict_rolling(own, series, GRAPH, WINDOW, present=present)
    days = slice(3, 3 + WINDOW)
    batch = SimpleNamespace(
        x=series[:, days], edge_index=GRAPH.edge_index, edge_weight=GRAPH.edge_weight, present=present[:, days]
    )
    predictions, confidences, parts = hiermt.inference_hierarchical(own, batch)
    assert torch.equal(predictions, rolling.predictions[3])
    assert_close(confidences, rolling.confidences[3])
    there = present[:, days.stop - 1]
    assert (parts["signal_preds"][~there] == -1).all() and parts["p_up"][~there].isnan().all()
    assert (parts["signal_preds"][there] >= 0).all()
    loader = data.WindowLoader(data.WindowDataset(series, *edges(), WINDOW, present=present), [3, 4], 2)
    predictions, _, _ = hiermt.inference_hierarchical(own, next(iter(loader)))
    assert torch.equal(predictions, rolling.predictions[3:5])


def test_refused() -> None:
    own, (series, present) = model(), history()
    with pytest.raises(ValueError, match="NaN or infinite; repair the series, or give present="):
        predict_rolling(own, series, GRAPH, WINDOW)
    with pytest.raises(ValueError, match=r"NaN or infinite; repair the series$"):
        predict_rolling(own, series, GRAPH, WINDOW, present=torch.ones_like(present))
    wrong: list[tuple[Any, type[Exception], str]] = [
        (present.float(), TypeError, "present: expected a bool Tensor"),
        (present.tolist(), TypeError, "present: expected a bool Tensor"),
        (present[:, 1:], ValueError, "present: expected shape"),
        (present.to("meta"), ValueError, "present is on meta|present on meta"),
    ]
    live = LivePredictor(own, GRAPH, WINDOW)
    for mask, error, message in wrong:
        with pytest.raises(error, match=message):
            predict_rolling(own, series, GRAPH, WINDOW, present=mask)
        with pytest.raises(error):
            live.extend(series, mask)
    shapes = rf"expected shape \[{len(series)}\], got \[{len(series)}, {present.size(1)}\]"
    with pytest.raises(ValueError, match=shapes):
        live.append(series[:, 0], present)
    assert live.days == 0
