"""Stocks that list late, leave, or miss days: each as if its own history were all there is."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hiermt import data
from hiermt.data import DataError, DataWarning
from support.price_tables import bars, ready_features

pytestmark = pytest.mark.hostile("absent")

pd = pytest.importorskip("pandas")

STOCKS, DAYS = 5, 220


def table() -> Any:
    """S1 lists late, S2 leaves, S3 misses days, one of S4's cells is empty."""
    frame = bars(STOCKS, DAYS)
    days = np.unique(frame.Date)
    frame.loc[(frame.Symbol == "S4") & (frame.Date == days[90]), "Low"] = np.nan
    absent = (frame.Symbol == "S1") & (frame.Date < days[50])
    absent |= (frame.Symbol == "S2") & (frame.Date > days[180])
    absent |= (frame.Symbol == "S3") & frame.Date.isin(days[[100, 101, 102, 150]])
    return frame[~absent]


def kept(frame: Any = None) -> data.Prices:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return data.read_prices(table() if frame is None else frame, missing="keep")


def features(frame: Any = None, **options: Any) -> data.FeatureTable:
    return data.compute_features(kept(frame), **options)


class TestPrices:
    def test_nothing_is_cut_and_nothing_filled(self) -> None:
        prices = kept()
        assert prices.present is not None and prices.close.shape == (STOCKS, DAYS)
        assert prices.present.sum(axis=1).tolist() == [220, 170, 181, 216, 219]
        for panel in (prices.open, prices.high, prices.low, prices.close):
            assert panel is not None
            np.testing.assert_array_equal(np.isnan(panel), ~prices.present)
        wide = table().pivot(index="Date", columns="Symbol", values="Close").to_numpy().T
        np.testing.assert_array_equal(prices.close[prices.present], wide[prices.present])

    def test_a_table_without_gaps_has_no_mask_and_the_same_features(self) -> None:
        frame = bars(3, 100)
        assert kept(frame).present is None
        one, other = features(frame), data.compute_features(data.read_prices(frame))
        assert one.present is None and torch.equal(one.values, other.values)

    def test_a_gap_longer_than_max_gap_is_kept_without_a_word(self) -> None:
        frame = bars(2, 100)
        frame = frame[~((frame.Symbol == "S1") & frame.Date.isin(np.unique(frame.Date)[20:60]))]
        with pytest.raises(DataError, match="at most 5 are filled"):
            data.read_prices(frame)
        assert not kept(frame).present[1, 20:60].any()

    def test_refused(self) -> None:
        with pytest.raises(ValueError, match="missing: expected 'fill' or 'keep', got 'drop'"):
            data.read_prices(table(), missing="drop")
        frame = table()
        frame.loc[frame.Symbol == "S2", "Close"] = np.nan
        with pytest.raises(DataError, match="S2 has no complete row"):
            data.read_prices(frame, missing="keep")


class TestFeatures:
    def test_those_of_a_stock_are_those_of_its_own_history_alone(self) -> None:
        frame, found = table().dropna(), features(dtype=torch.float64)
        assert found.present is not None
        for i, symbol in enumerate(found.symbols):
            own = frame[frame.Symbol == symbol]
            # A table needs two stocks.
            alone = data.compute_features(
                data.read_prices(pd.concat([own, own.assign(Symbol="Z")])), dtype=torch.float64
            )
            here = found.present[i]
            assert torch.equal(found.values[i, here], alone.values[0])
            np.testing.assert_array_equal(found.dates[here.numpy()], alone.dates)
            assert found.values[i, ~here].isnan().all()

    def test_own_days_by_pandas(self) -> None:
        frame, found = table().dropna(), features(dtype=torch.float64)
        assert found.present is not None
        for i, symbol in enumerate(found.symbols):
            close = frame[frame.Symbol == symbol].set_index("Date").Close
            returns = np.log(close / close.shift())
            deviation = returns.rolling(60).std()
            month = (returns.rolling(21).sum() / deviation)[60:]
            macd = (close.ewm(span=12, adjust=False).mean() - close.ewm(span=26, adjust=False).mean())[60:]
            here = found.present[i]
            for name, expected in (("Ret_1M", month), ("MACD", macd)):
                column = found.values[i, here, found.names.index(name)]
                np.testing.assert_allclose(column, expected, rtol=1e-9, atol=1e-10)

    def test_later_days_change_no_earlier_feature(self) -> None:
        frame = table()
        cut = np.unique(frame.Date)[170]
        whole, early = features(frame), features(frame[frame.Date <= cut])
        days = early.num_days
        assert torch.equal(whole.present[:, :days], early.present)
        assert torch.equal(whole.values[:, :days].nan_to_num(9), early.values.nan_to_num(9))

    def test_a_stock_with_a_short_history_is_absent_with_a_warning(self) -> None:
        frame = bars(3, 100)
        frame = frame[~((frame.Symbol == "S2") & (frame.Date < np.unique(frame.Date)[60]))]
        with pytest.warns(DataWarning, match="S2: 60 days of prices or fewer"):
            found = data.compute_features(data.read_prices(frame, missing="keep"))
        assert not found.present[2].any() and found.present[:2].all()

    def test_a_price_of_an_absent_stock_is_not_read(self) -> None:
        prices = kept()
        assert prices.present is not None
        filled = dataclasses.replace(prices, close=np.where(prices.present, prices.close, 0.0))
        one, other = data.compute_features(prices), data.compute_features(filled)
        assert torch.equal(one.values.nan_to_num(9), other.values.nan_to_num(9))
        assert torch.equal(one.close.nan_to_num(9), other.close.nan_to_num(9))

    def test_refused(self) -> None:
        frame = bars(2, 80)
        frame = frame[~((frame.Symbol == "S0") & (frame.Date > np.unique(frame.Date)[50]))]
        frame = frame[~((frame.Symbol == "S1") & (frame.Date < np.unique(frame.Date)[30]))]
        with pytest.raises(DataError, match="51 days of prices, but features need more than 60"):
            features(frame)
        prices = kept()
        with pytest.raises(DataError, match=r"present: expected bool \[5, 220\]"):
            data.compute_features(dataclasses.replace(prices, present=prices.present[:, 1:]))
        with pytest.raises(DataError, match="open of S1 on 2020-01-01 is nan"):
            data.compute_features(dataclasses.replace(prices, present=None))


class TestReadyFeatures:
    def test_missing_rows_and_empty_cells(self) -> None:
        whole = data.compute_features(data.read_prices(bars(3, 90)))
        frame = ready_features(whole)
        frame.loc[5, "RSI"] = np.nan
        frame = frame.drop(index=[40, 41])
        with pytest.raises(DataError, match="missing='keep'"):
            data.read_features(frame)
        found = data.read_features(frame, missing="keep")
        expected = torch.ones(3, whole.num_days, dtype=torch.bool)
        for row in (5, 40, 41):
            expected[row // whole.num_days, row % whole.num_days] = False
        assert torch.equal(found.present, expected)
        assert torch.equal(found.values[expected], whole.values[expected])
        assert found.values[~expected].isnan().all()
        # The label of the day before an empty feature reads the close beside it.
        assert found.close[~expected].isnan().tolist() == [False, True, True]
        assert data.read_features(ready_features(whole), missing="keep").present is None

    def test_refused(self) -> None:
        frame = ready_features(data.compute_features(data.read_prices(bars(3, 90))))
        with pytest.raises(ValueError, match="missing: expected 'refuse' or 'keep'"):
            data.read_features(frame, missing="fill")
        with pytest.raises(DataError, match=r"S1 has 2 rows .* at most one"):
            data.read_features(pd.concat([frame, frame[frame.Symbol == "S1"].iloc[:1]]), missing="keep")
        frame.loc[frame.Symbol == "S2", "MACD"] = np.nan
        with pytest.raises(DataError, match="S2 has no complete row"):
            data.read_features(frame, missing="keep")


class TestGraphAndScale:
    def test_correlation_of_the_shared_days_equals_that_of_pandas(self) -> None:
        returns = data.next_returns(features().close)
        assert returns.isnan().any()
        edge_index, weight = data.correlation_graph(returns, -1, present=returns.isfinite())
        expected = pd.DataFrame(returns.t().numpy()).corr().to_numpy()
        assert edge_index.size(1) == STOCKS * (STOCKS - 1)
        np.testing.assert_allclose(weight, expected[tuple(edge_index)], rtol=1e-6)

    def test_a_mask_of_all_days_is_no_mask(self) -> None:
        returns = torch.randn(6, 80, dtype=torch.float64)
        returns[3] = 0.25
        there = torch.ones(6, 80, dtype=torch.bool)
        one, other = data.correlation_graph(returns, -0.9), data.correlation_graph(returns, -0.9, present=there)
        assert torch.equal(one[0], other[0]) and not (one[0] == 3).any()
        torch.testing.assert_close(one[1], other[1])

    def test_pairs_that_share_few_days_have_no_edge(self) -> None:
        returns = torch.randn(1, 100, dtype=torch.float64).expand(3, 100) + 0.01 * torch.randn(3, 100)
        there = torch.ones(3, 100, dtype=torch.bool)
        there[0, 50:], there[1, :40] = False, False
        edges = {tuple(edge) for edge in data.correlation_graph(returns, present=there)[0].t().tolist()}
        assert edges == {(0, 2), (2, 0), (1, 2), (2, 1)}
        edges = {tuple(edge) for edge in data.correlation_graph(returns, present=there, min_days=10)[0].t().tolist()}
        assert len(edges) == 6

    def test_refused(self) -> None:
        returns = torch.randn(3, 30)
        returns[0, 3] = torch.nan
        with pytest.raises(DataError, match=r"pass present=returns\.isfinite"):
            data.correlation_graph(returns)
        with pytest.raises(DataError, match="present: expected bool"):
            data.correlation_graph(returns, present=torch.ones(3, 30))
        with pytest.raises(DataError, match="NaN or infinity"):
            data.correlation_graph(returns, present=torch.ones(3, 30, dtype=torch.bool))
        with pytest.raises(ValueError, match="min_days"):
            data.correlation_graph(returns, present=returns.isfinite(), min_days=1)

    def test_scale_of_the_cells_that_are_there(self) -> None:
        found = features()
        scale = data.Scale.fit(found.values, found.names, found.present)
        cells = found.values.double().flatten(0, 1).numpy()
        np.testing.assert_allclose(scale.mean, np.nanmean(cells, axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(scale.deviation, np.nanstd(cells, axis=0), rtol=1e-9)
        with pytest.raises(DataError, match="holds NaN"):
            data.Scale.fit(found.values, found.names)
        with pytest.raises(DataError, match="no stock is present"):
            data.Scale.fit(found.values, present=torch.zeros_like(found.present))


def dataset(**options: Any) -> data.WindowDataset:
    found = features()
    returns = data.next_returns(found.close)
    edges = data.correlation_graph(returns, present=returns.isfinite())
    scale = data.Scale.fit(found.values, found.names, found.present)
    return data.WindowDataset.from_table(found, *edges, 10, scale=scale, **options)


class TestDataset:
    @pytest.mark.parametrize("horizon", [1, 3])
    def test_labels_are_missing_where_a_price_is(self, horizon: int) -> None:
        found = dataset(horizon=horizon)
        wide = table().dropna().pivot(index="Date", columns="Symbol", values="Close")
        returns = (wide.shift(-horizon) / wide - 1).to_numpy().T[:, -found.num_days : -horizon]
        mask = found.targets["target_mask"].numpy()
        present = found.present.numpy()[:, :-horizon]
        np.testing.assert_array_equal(mask, ~np.isnan(returns) & present)
        moved = np.abs(returns) > data.THRESHOLD
        np.testing.assert_array_equal(found.signal_labels.numpy()[mask], moved[mask])

    def test_the_loader_carries_the_mask(self) -> None:
        found = dataset()
        loader = data.WindowLoader(found, batch_size=16, shuffle=True)
        seen = 0
        for batch in loader:
            assert batch.present.shape == batch.x.shape[:3]
            for w, start in enumerate(batch.starts.tolist()):
                days = slice(start, start + found.window)
                assert torch.equal(batch.present[w], found.present[:, days])
                assert torch.equal(batch.x[w].nan_to_num(7), found.series[:, days].nan_to_num(7))
                assert torch.equal(batch.target_mask[w], found.targets["target_mask"][:, start + found.window - 1])
                seen += 1
        assert seen == found.num_labelled

    def test_pyg_carries_the_mask_and_gives_it_back(self) -> None:
        pytest.importorskip("torch_geometric")
        found = dataset()
        batch = next(iter(data.pyg_loader(found, batch_size=3)))
        assert torch.equal(batch.present, torch.cat([found.present[:, i : i + 10] for i in range(3)]))
        again = data.from_pyg_dataset(data.PygDataset(found), 4, layout="NTF", progress=False).dataset
        days = again.num_days
        assert torch.equal(again.present, found.present[:, :days])
        assert torch.equal(again.series, found.series[:, :days].masked_fill(~again.present.unsqueeze(-1), 0))
        assert torch.equal(again.targets["target_mask"][:, 9:], found.targets["target_mask"][:, 9:days])

    def test_refused(self) -> None:
        series = torch.randn(3, 20, 2)
        edges = torch.tensor([[0, 1], [1, 2]])
        series[1, 4, 0] = torch.nan
        with pytest.raises(DataError, match="give present= where stocks are absent"):
            data.WindowDataset(series, edges, None, 5)
        present = series.isfinite().all(-1)
        data.WindowDataset(series, edges, None, 5, present=present)
        masks: list[tuple[Any, str]] = [
            (present.float(), "present: expected bool"),
            (present[:, 1:], r"present: expected bool .* \[3, 20\]"),
            (present.to("meta"), "present is on meta"),
            (torch.ones_like(present), "is NaN or infinite; repair"),
        ]
        for mask, message in masks:
            with pytest.raises(DataError, match=message):
                data.WindowDataset(series, edges, None, 5, present=mask)
        with pytest.raises(DataError, match="'present' cannot be the name of a target"):
            data.WindowDataset(series, edges, None, 5, targets={"present": present}, present=present)

    def test_windows_of_pyg_with_and_without_a_mask_are_refused(self) -> None:
        pytest.importorskip("torch_geometric")
        items = list(data.PygDataset(dataset()))
        items[3].present = None
        with pytest.raises(DataError, match="window 3: give present to all windows"):
            data.from_pyg_dataset(items, layout="NTF", progress=False)
        items = [item.clone() for item in data.PygDataset(dataset())]
        items[2].present = ~items[2].present
        with pytest.raises(DataError, match="window 2: is not the window before"):
            data.from_pyg_dataset(items, layout="NTF", progress=False)


def test_a_window_without_a_mask_has_none() -> None:
    series = torch.randn(3, 20, 2)
    loader = data.WindowLoader(data.WindowDataset(series, torch.tensor([[0], [1]]), None, 5), batch_size=4)
    present: Tensor | None = next(iter(loader)).present
    assert present is None
