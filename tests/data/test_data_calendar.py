"""Days and gaps against pandas: days are those with a price, and nothing is filled from a later day."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hiermt.data import DataError, DataWarning, compute_features, hierarchical_labels, next_returns, read_prices

pd = pytest.importorskip("pandas")
OHLC = ["Open", "High", "Low", "Close"]


def wide(columns, first="2024-01-01"):
    days = pd.date_range(first, periods=len(next(iter(columns.values()))))
    return pd.DataFrame(columns, index=days, dtype=float)


def read(table, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return read_prices(table, **options)


def expected(closes):
    """Closes ``[D, S]`` as pandas gives them: days with a price, filled forward, cut to the shared days."""
    closes = closes.dropna(how="all")
    start = max(closes[name].first_valid_index() for name in closes)
    stop = min(closes[name].last_valid_index() for name in closes)
    return closes.ffill().loc[start:stop]


class TestFirstDay:
    def test_the_close_before_the_first_shared_day_is_carried(self):
        table = wide({"A": [100, np.nan, 101, 999], "B": [np.nan, 50, 51, 52]})
        with pytest.warns(DataWarning, match="first A on 2024-01-02; the last close is carried"):
            prices = read_prices(table)
        np.testing.assert_array_equal(prices.close, [[100, 101, 999], [50, 51, 52]])

    def test_the_whole_bar_is_that_close(self):
        closes = wide({"A": [100, np.nan, 101, 999], "B": [np.nan, 50, 51, 52]})
        long = closes.rename_axis("Date").reset_index().melt("Date", var_name="Symbol", value_name="Close").dropna()
        long = long.assign(Open=long.Close - 1, High=long.Close + 2, Low=long.Close - 2)
        prices = read(long.sample(frac=1, random_state=1), symbols=["A", "B"])
        for name in ("open", "high", "low", "close"):
            assert getattr(prices, name)[0, 0] == 100
        np.testing.assert_array_equal(prices.high[:, 1:], [[103, 1001], [53, 54]])

    def test_a_gap_that_begins_before_the_first_shared_day_counts_whole(self):
        nan = np.nan
        table = wide({"A": [100, nan, nan, nan, 101, 102], "B": [1, 2, 3, 4, 5, 6], "C": [nan, nan, nan, 4, 5, 6]})
        with pytest.raises(DataError, match="A has no prices from 2024-01-02 to 2024-01-04, 3 trading days"):
            read(table, max_gap=2)
        np.testing.assert_array_equal(read(table, max_gap=3).close[0], [100, 101, 102])

    def test_a_gap_before_the_shared_days_does_not_matter(self):
        nan = np.nan
        table = wide({"A": [100, nan, nan, nan, 101, 102], "C": [nan, 1, nan, nan, 5, 6], "B": [nan] * 4 + [5, 6]})
        np.testing.assert_array_equal(read(table, max_gap=0).close[0], [101, 102])


class TestEmptyDays:
    def test_weekends_without_prices_are_dropped(self):
        days = pd.bdate_range("2024-01-01", periods=140)
        random = np.random.default_rng(0)
        closes = pd.DataFrame(np.exp(random.normal(0, 0.02, (140, 3)).cumsum(0)) * 50, days, list("ABC"))
        with_weekends = closes.reindex(pd.date_range(days[0], days[-1]))
        assert len(with_weekends) > 190
        long = with_weekends.rename_axis("Date").reset_index().melt("Date", var_name="Symbol", value_name="Close")
        for table in (with_weekends, long):
            with pytest.warns(DataWarning, match="54 day.s. without a price of any stock, first 2024-01-06, are left"):
                prices = read_prices(table)
            np.testing.assert_array_equal(prices.dates, days.to_numpy().astype("datetime64[D]"))
            np.testing.assert_array_equal(prices.close, closes.to_numpy().T)
        with pytest.warns(DataWarning, match="closing prices only"):
            close = compute_features(prices).close
        signal, _ = hierarchical_labels(next_returns(close))
        truth = closes.pct_change().shift(-1).to_numpy()[60:-1].T
        np.testing.assert_array_equal(signal.numpy(), np.abs(truth) > 0.0055)

    def test_empty_days_do_not_count_as_a_gap(self):
        table = wide({"A": [1, *[np.nan] * 10, 2, 3], "B": [1, *[np.nan] * 10, 2, 3]})
        np.testing.assert_array_equal(read(table, max_gap=0).close, [[1, 2, 3], [1, 2, 3]])

    def test_days_of_other_stocks_are_dropped(self):
        table = wide({"A": [1, np.nan, 2], "B": [1, np.nan, 2], "C": [1, 2, 3]})
        assert read(table, symbols=["A", "B"]).close.shape == (2, 2)
        assert read(table).close.shape == (3, 3)


cells = st.one_of(st.none(), st.floats(0.01, 1e6), st.floats(0.01, 1e6))


@st.composite
def tables(draw):
    days, stocks = draw(st.integers(1, 9)), draw(st.integers(2, 4))
    names = [f"S{i}" for i in range(stocks)]
    values = draw(st.lists(cells, min_size=days * stocks, max_size=days * stocks))
    index = pd.date_range("2024-01-01", periods=days)
    closes = pd.DataFrame(np.array(values, dtype=float).reshape(days, stocks), index, names)
    assume(closes.notna().any().all())
    return closes, draw(st.randoms(use_true_random=False))


class TestAgainstPandas:
    @settings(max_examples=150, deadline=None)
    @given(tables(), st.sampled_from(["wide", "long", "two levels"]))
    def test_closes_with_any_gaps(self, drawn, form):
        closes, random = drawn
        if form == "wide":
            table = closes.rename_axis("Date").reset_index()
        elif form == "long":
            table = closes.rename_axis("Date").reset_index().melt("Date", var_name="Symbol", value_name="Close")
        else:
            table = pd.concat({"Close": closes, "Volume": closes}, axis=1).rename_axis("Date").reset_index()
        table = table.sample(frac=1, random_state=random.randrange(1000))
        start = max(closes[name].first_valid_index() for name in closes)
        if start > min(closes[name].last_valid_index() for name in closes):
            with pytest.raises(DataError, match="no day is shared"):
                read(table)
            return
        prices = read(table, max_gap=9, symbols=list(closes))
        truth = expected(closes)
        np.testing.assert_array_equal(prices.close, truth.to_numpy().T)
        np.testing.assert_array_equal(prices.dates, truth.index.to_numpy().astype("datetime64[D]"))

    @settings(max_examples=150, deadline=None)
    @given(tables(), st.lists(st.tuples(st.integers(0, 8), st.sampled_from(OHLC)), max_size=4), st.booleans())
    def test_bars_with_any_cell_empty(self, drawn, holes, left_out):
        closes, random = drawn
        long = closes.rename_axis("Date").reset_index().melt("Date", var_name="Symbol", value_name="Close")
        long = long.assign(Open=long.Close * 1.01, High=long.Close * 1.02, Low=long.Close * 0.99, Volume=np.nan)
        for row, name in holes:
            if row < len(long):
                long.loc[row, name] = np.nan
        complete = long.dropna(subset=OHLC)
        bars = {name: complete.pivot(index="Date", columns="Symbol", values=name) for name in OHLC}
        assume(set(bars["Close"].columns) == set(closes))
        table = (complete if left_out else long).sample(frac=1, random_state=random.randrange(1000))
        try:
            truth = expected(bars["Close"])
            assume(len(truth))
        except ValueError:
            assume(False)
        prices = read(table, max_gap=9, symbols=list(closes))
        np.testing.assert_array_equal(prices.close, truth.to_numpy().T)
        for name in OHLC[:3]:
            # A day without a row is a flat bar at the last close.
            there = bars[name].loc[truth.index]
            np.testing.assert_array_equal(getattr(prices, name.lower()), there.fillna(truth).to_numpy().T)

    @pytest.mark.hostile("price-columns")
    @settings(max_examples=60, deadline=None)
    @given(tables(), st.integers(1, 8), st.floats(1, 1e6))
    def test_later_prices_change_nothing_before(self, drawn, cut, factor):
        closes, _ = drawn
        later = closes.copy()
        later.iloc[cut:] *= factor
        try:
            before, after = read(closes, max_gap=9), read(later, max_gap=9)
        except DataError:
            return
        known = before.dates < np.datetime64(closes.index[0], "D") + cut
        np.testing.assert_array_equal(before.close[:, known], after.close[:, known])


@pytest.mark.parametrize("gap", [True, 2.0, "3", None])
def test_max_gap_is_an_integer(gap):
    with pytest.raises(TypeError, match="max_gap"):
        read_prices(wide({"A": [1], "B": [2]}), max_gap=gap)


def test_max_gap_of_numpy():
    table = wide({"A": [1, np.nan, 2], "B": [1, 2, 3]})
    np.testing.assert_array_equal(read(table, max_gap=np.int32(1)).close[0], [1, 1, 2])
    with pytest.raises(ValueError, match="max_gap: expected 0 or more"):
        read_prices(table, max_gap=-1)
