"""The published features against pandas, `ta` and hand-made histories, and without look-ahead."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiermt import data
from hiermt.data import DataError, DataWarning

pd = pytest.importorskip("pandas")
DAYS = 200
NAMES = ["SimpleReturn", "LogReturn", "Ret_1W", "Ret_2W", "Ret_1M", "Ret_2M", "Norm_Ret", "RSI", "MACD"]
NAMES += ["Intraday_Volatility", "Intraday_Momentum", "Upper_Shadow_Ratio", "Lower_Shadow_Ratio"]
BARS = ("open", "high", "low", "close")


def make_prices(close, seed=0, bars=True):
    """Bars around closes ``[S, D]``."""
    random = np.random.default_rng(seed)
    close = np.asarray(close, dtype=float)
    opened = close * np.exp(random.normal(0, 0.01, close.shape))
    high = np.maximum(close, opened) * (1 + random.uniform(0, 0.01, close.shape))
    low = np.minimum(close, opened) * (1 - random.uniform(0, 0.01, close.shape))
    dates = pd.bdate_range("2020-01-01", periods=close.shape[1]).to_numpy().astype("datetime64[D]")
    symbols = tuple(f"S{i}" for i in range(len(close)))
    return data.Prices(symbols, dates, close, *((opened, high, low) if bars else ()))


def random_prices(stocks=4, days=DAYS, seed=0, bars=True, level=50.0, volatility=0.02):
    random = np.random.default_rng(seed)
    moves = random.normal(0, volatility, (stocks, days))
    # Days without a move, as in every real history.
    moves[random.random(moves.shape) < 0.05] = 0
    return make_prices(level * np.exp(np.cumsum(moves, axis=1)), seed + 1, bars)


def flat_prices(days=100):
    """Two stocks, the second of which never moves."""
    ones = np.full(days, 7.0)
    prices = random_prices(2, days)
    changed = {name: np.stack([getattr(prices, name)[0], ones]) for name in BARS}
    return dataclasses.replace(prices, **changed)


def published(prices):
    """The published formulas in pandas, one stock at a time: a list of data frames with all days."""
    tables = []
    for i in range(len(prices.symbols)):
        opened, high, low, c = (pd.Series(np.asarray(getattr(prices, name)[i], dtype=float)) for name in BARS)
        simple = c / c.shift(1) - 1
        r = np.log(1 + simple)
        sd = r.rolling(60).std()
        delta = c.diff()
        up = delta.where(delta > 0, 0.0).ewm(alpha=1 / 14, min_periods=14, adjust=False).mean()
        down = (-delta.where(delta < 0, 0.0)).ewm(alpha=1 / 14, min_periods=14, adjust=False).mean()
        fast = c.ewm(span=12, min_periods=12, adjust=False).mean()
        slow = c.ewm(span=26, min_periods=26, adjust=False).mean()
        tables.append(
            pd.DataFrame(
                {
                    "SimpleReturn": simple,
                    "LogReturn": r,
                    "Ret_1W": r.rolling(5).sum() / sd,
                    "Ret_2W": r.rolling(10).sum() / sd,
                    "Ret_1M": r.rolling(21).sum() / sd,
                    "Ret_2M": r.rolling(42).sum() / sd,
                    "Norm_Ret": r / sd,
                    "RSI": pd.Series(np.where(down == 0, 100, 100 - 100 / (1 + up / down))) / 100,
                    "MACD": fast - slow,
                    "Intraday_Volatility": (high - low) / c,
                    "Intraday_Momentum": (c - opened) / opened,
                    "Upper_Shadow_Ratio": (high - np.maximum(opened, c)) / c,
                    "Lower_Shadow_Ratio": (np.minimum(opened, c) - low) / c,
                }
            )
        )
    return tables


def assert_published(prices, table):
    for i, expected in enumerate(published(prices)):
        assert list(table.names) == list(expected.columns)
        # The published tables drop what is not complete: exactly the first 60 days.
        assert expected.dropna().index[0] == data.WARM_UP == 60
        scale = np.r_[np.ones(8), np.abs(prices.close[i]).max(), np.ones(4)]
        found, wanted = table.values[i].numpy() / scale, expected.to_numpy()[60:] / scale
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-11)


class TestPublished:
    def test_names_and_order(self):
        table = data.compute_features(random_prices())
        assert list(table.names) == list(data.FEATURES) == NAMES
        assert data.CLOSE_FEATURES + data.BAR_FEATURES == data.FEATURES
        assert table.values.dtype == torch.float32
        assert table.close.dtype == torch.float64

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize(
        ("level", "volatility", "days"), [(50.0, 0.02, 200), (0.003, 0.1, 61), (4e5, 0.001, 130), (2.0, 0.5, 400)]
    )
    def test_equal_pandas(self, seed, level, volatility, days):
        prices = random_prices(days=days, seed=seed, level=level, volatility=volatility)
        table = data.compute_features(prices, dtype=torch.float64)
        assert table.values.shape == (4, days - 60, 13)
        assert_published(prices, table)
        np.testing.assert_array_equal(table.close.numpy(), prices.close[:, 60:])
        np.testing.assert_array_equal(table.dates, prices.dates[60:])
        single = data.compute_features(prices)
        assert torch.equal(single.values, table.values.float())

    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), days=st.integers(61, 150), stocks=st.integers(1, 3))
    def test_equal_pandas_on_any_history(self, seed, days, stocks):
        random = np.random.default_rng(seed)
        prices = random_prices(stocks, days, seed, True, 10 ** random.uniform(-4, 6), 10 ** random.uniform(-3, -0.5))
        assert_published(prices, data.compute_features(prices, dtype=torch.float64))

    @pytest.mark.parametrize("seed", range(4))
    def test_rsi_and_macd_equal_ta(self, seed):
        momentum, trend = pytest.importorskip("ta.momentum"), pytest.importorskip("ta.trend")
        prices = random_prices(seed=seed, level=10.0**seed)
        table = data.compute_features(prices, dtype=torch.float64)
        for i, close in enumerate(prices.close):
            series = pd.Series(close)
            for name, expected in {
                "RSI": momentum.rsi(series, 14) / 100,
                "MACD": trend.macd(series, 26, 12) / close.max(),
            }.items():
                found = table.values[i, :, NAMES.index(name)].numpy() / (close.max() if name == "MACD" else 1)
                np.testing.assert_allclose(found, expected.to_numpy()[60:], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("close", [np.full(100, 7.0), np.linspace(1, 2, 100), np.linspace(2, 1, 100)])
    def test_extreme_strength_equals_ta(self, close):
        momentum = pytest.importorskip("ta.momentum")
        close = np.stack([close, close])
        if np.ptp(close):
            close = np.round(close, 3)
        found = data.compute_features(make_prices(close), dtype=torch.float64).values[..., NAMES.index("RSI")]
        expected = momentum.rsi(pd.Series(close[0]), 14).to_numpy()[60:] / 100
        np.testing.assert_allclose(found[1].numpy(), expected, rtol=1e-9, atol=1e-12)

    def test_bars_by_hand(self):
        prices = random_prices(1, 61)
        bar = {"open": 10.0, "high": 13.0, "low": 8.0, "close": 12.5}
        for name, value in bar.items():
            getattr(prices, name)[0, -1] = value
        found = data.compute_features(prices, dtype=torch.float64).values[0, -1, 9:]
        torch.testing.assert_close(found.tolist(), [5 / 12.5, 0.25, 0.5 / 12.5, 2 / 12.5], rtol=1e-14, atol=0)

    @pytest.mark.filterwarnings("ignore::hiermt.data.DataWarning")
    def test_a_bridged_gap_is_a_day_without_a_move(self):
        prices = random_prices(3, 150)
        rows = [
            (s, day, *(getattr(prices, name)[i, d] for name in BARS))
            for i, s in enumerate(prices.symbols)
            for d, day in enumerate(prices.dates)
            if not (i == 1 and 90 <= d < 93)
        ]
        read = data.read_prices(pd.DataFrame(rows, columns=["Symbol", "Date", "Open", "High", "Low", "Close"]))
        table = data.compute_features(read, dtype=torch.float64)
        carried = {name: getattr(prices, name).copy() for name in BARS}
        for array in carried.values():
            array[1, 90:93] = prices.close[1, 89]
        assert_published(dataclasses.replace(prices, **carried), table)
        gap = table.values[1, 30:33]
        for name in ("SimpleReturn", "LogReturn", "Norm_Ret", "Intraday_Volatility", "Upper_Shadow_Ratio"):
            assert (gap[:, NAMES.index(name)] == 0).all()

    def test_close_only_says_what_is_missing(self):
        with pytest.warns(DataWarning, match="9 of the 13.*Upper_Shadow_Ratio"):
            table = data.compute_features(random_prices(bars=False))
        assert list(table.names) == list(data.CLOSE_FEATURES) == NAMES[:9]
        full = data.compute_features(random_prices())
        assert torch.equal(table.values, full.values[..., :9])

    @pytest.mark.parametrize("absent", BARS[:3])
    def test_an_incomplete_bar_counts_as_close_only(self, absent):
        with pytest.warns(DataWarning, match="need Open, High and Low"):
            table = data.compute_features(dataclasses.replace(random_prices(), **{absent: None}))
        assert table.names == data.CLOSE_FEATURES

    def test_prices_of_other_dtypes(self):
        prices = random_prices()
        whole = {name: np.ceil(getattr(prices, name)).astype(np.int32) for name in BARS}
        table = data.compute_features(dataclasses.replace(prices, **whole), dtype=torch.float64)
        assert_published(dataclasses.replace(prices, **whole), table)
        single = {name: getattr(prices, name).astype(np.float32) for name in BARS}
        table = data.compute_features(dataclasses.replace(prices, **single), dtype=torch.float64)
        assert_published(dataclasses.replace(prices, **{n: a.astype(float) for n, a in single.items()}), table)


class TestTime:
    @pytest.mark.parametrize("cut", [60, 61, 75, 120, 199])
    @pytest.mark.parametrize("bars", [True, False])
    @pytest.mark.filterwarnings("ignore::hiermt.data.DataWarning")
    def test_future_prices_do_not_change_past_features(self, cut, bars):
        prices = random_prices(bars=bars)
        noise = np.random.default_rng(9).uniform(0.2, 5, (4, DAYS - cut))
        changed = {name: getattr(prices, name).copy() for name in BARS if getattr(prices, name) is not None}
        for array in changed.values():
            array[:, cut:] *= noise
        before = data.compute_features(prices).values
        after = data.compute_features(dataclasses.replace(prices, **changed)).values
        day = cut - data.WARM_UP
        assert torch.equal(before[:, :day], after[:, :day])
        assert not torch.equal(before[:, day], after[:, day])

    @pytest.mark.parametrize("name", BARS)
    def test_every_feature_follows_its_price_on_the_same_day(self, name):
        prices = random_prices()
        array = getattr(prices, name).copy()
        array[:, -1] *= 1.5
        difference = data.compute_features(dataclasses.replace(prices, **{name: array})).values != (
            data.compute_features(prices).values
        )
        assert not difference[:, :-1].any()
        changed = {n for n, touched in zip(NAMES, difference[:, -1].any(0).tolist(), strict=True) if touched}
        reads = {
            "open": {"Intraday_Momentum", "Upper_Shadow_Ratio", "Lower_Shadow_Ratio"},
            "high": {"Intraday_Volatility", "Upper_Shadow_Ratio"},
            "low": {"Intraday_Volatility", "Lower_Shadow_Ratio"},
            "close": set(NAMES),
        }
        assert changed == reads[name]

    def test_more_history_at_the_end_does_not_change_features(self):
        prices = random_prices()
        shorter = dataclasses.replace(
            prices, dates=prices.dates[:150], **{n: getattr(prices, n)[:, :150] for n in BARS}
        )
        assert torch.equal(data.compute_features(shorter).values, data.compute_features(prices).values[:, :90])

    def test_one_stock_does_not_see_another(self):
        prices = random_prices()
        one = data.Prices(("S2",), prices.dates, *(getattr(prices, n)[2:3] for n in ("close", "open", "high", "low")))
        assert torch.equal(data.compute_features(one).values[0], data.compute_features(prices).values[2])

    def test_too_few_days(self):
        for days in (1, 59, 60):
            with pytest.raises(DataError, match=f"{days} days of prices, but features need more than 60"):
                data.compute_features(random_prices(days=days))
        assert data.compute_features(random_prices(days=61)).num_days == 1


class TestZeroDenominators:
    def test_constant_prices_give_finite_features(self):
        values = data.compute_features(flat_prices()).values[1]
        wanted = torch.zeros(13)
        wanted[NAMES.index("RSI")] = 1
        assert torch.equal(values, wanted.expand_as(values))

    def test_adjusted_constant_prices_that_differ_by_rounding(self):
        factor = np.random.default_rng(0).uniform(0.1, 1, 100)
        close = np.stack([(7.0 * factor) / factor, np.linspace(1, 2, 100) ** 2])
        values = data.compute_features(make_prices(close)).values[0]
        assert (values[:, 2:7] == 0).all()

    @pytest.mark.parametrize("factor", [2.0, 0.5, 1.01, 0.997])
    def test_steady_growth_has_no_deviation(self, factor):
        close = np.stack([random_prices(1, 120).close[0], 100 * factor ** np.arange(120.0)])
        with pytest.raises(DataError, match=r"Norm_Ret of S1 on 2020-03-25 is not finite.*by the same"):
            data.compute_features(make_prices(close))

    def test_a_still_stock_that_moves_again(self):
        close = np.full(130, 5.0)
        close[100:] = 6.0
        values = data.compute_features(make_prices([close])).values[0]
        assert (values[:40, 2:7] == 0).all()
        r = np.r_[np.zeros(59), np.log(1.2)]
        assert values[40, NAMES.index("Norm_Ret")].item() == pytest.approx(r[-1] / r.std(ddof=1))


class TestRefused:
    @pytest.mark.parametrize("name", BARS)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -3.0])
    @pytest.mark.parametrize("day", [0, 30, 100, DAYS - 1])
    def test_a_price_that_is_not_a_positive_number(self, name, value, day):
        prices = random_prices()
        getattr(prices, name)[2, day] = value
        with pytest.raises(DataError, match=f"{name} of S2 on {prices.dates[day]} is {value:g}; prices must be"):
            data.compute_features(prices)

    def test_judged_in_the_dtype_handed_out(self):
        prices = random_prices(2, level=1e200)
        assert torch.isfinite(data.compute_features(prices, dtype=torch.float64).values).all()
        with pytest.raises(DataError, match=r"feature MACD of S0 on 2020-03-25 is -?inf in torch.float32"):
            data.compute_features(prices)
        with pytest.raises(DataError, match=r"feature MACD of S0 .* in torch.float16"):
            data.compute_features(random_prices(2, level=1e9), dtype=torch.float16)

    def test_overflow_in_float64(self):
        close = random_prices(2).close
        close[1, 50:] = 1e-300
        close[1, 80] = 1e300
        with pytest.raises(DataError, match="of S1 on"):
            data.compute_features(make_prices(close), dtype=torch.float64)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, "float32", np.float32, None])
    def test_dtype(self, dtype):
        with pytest.raises(TypeError, match="dtype: expected a floating point"):
            data.compute_features(random_prices(), dtype=dtype)

    @pytest.mark.parametrize("name", BARS)
    def test_shape(self, name):
        prices = random_prices()
        with pytest.raises(DataError, match=rf"{name}: expected \[stocks, days\] = \[4, 200\], got"):
            data.compute_features(dataclasses.replace(prices, **{name: getattr(prices, name)[:, 1:]}))
