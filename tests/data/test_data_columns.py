"""Columns of wide tables under many names: stocks are read, everything else is refused or gives a warning."""

import numpy as np
import pytest

from hiermt.data import DataError, DataWarning, read_prices
from support.price_tables import quiet

pd = pytest.importorskip("pandas")
DAYS = pd.bdate_range("2020-01-01", periods=40)
OTHERS = ["AAPL", "MSFT", "XOM", "JPM"]


def frame(columns):
    steps = np.random.default_rng(0).normal(0, 0.01, (len(DAYS), len(columns)))
    return pd.DataFrame(np.exp(steps.cumsum(0)) * 100, columns=list(columns)).assign(Date=DAYS)[["Date", *columns]]


FIELDS = """
Index Level|index_level|SPX Index|S&P 500|S&P500|Nifty 50|Dow Jones|Nikkei 225|FTSE 100|Benchmark|benchmark|market|
Mkt-RF|Risk-Free Rate|risk_free|Interest Rate|Date2|date_2|TradeDate|trade_date|Trading Day|Settle Date|Unix Time|epoch|
AsOfDate|as_of|OpenInt|Open Int|PE Ratio|Book Value|Beta|beta|std|Std Dev|Median|sum|Total Return|macd_signal|BB_upper|
Bollinger High|upper_band|%K|%D|obv|momentum|prediction|score|weights|No.of Shares|Deliverable Quantity|Spread High-Low|
LTP|bid_size|mid_price|High Low Spread|Traded Value|Typical Price|Avg Price|Close_lag1|AAPL_lag1|OHLC4|open_close|nav|
Portfolio|cash|open_time|Close Time|Sl No|uid|Market Cap|Sector|Turnover|daily_return|Market Capitalization|Datum|
Value Traded|Close Ratio|Index Close|price_change|is_holiday|true_range|target|ebitda|dxy|roe
""".replace("\n", "").split("|")


@pytest.mark.hostile("price-columns")
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_beside_stocks(field):
    with pytest.raises(DataError, match=r"not a stock|one stock only|does not name a stock|not a number"):
        read_prices(frame([*OTHERS, field]))


SYMBOLS = """
600519.SS 0700.HK BRK.B BF-B ^GSPC ^VIX TRUE FALSE NAN NONE NA NULL ON ALL KEY OPEN LOW HIGH DOW DAY LINE RF NAV SUM MAX
GAP CASH TURN CCI CPI RATE COST NOW IT MA MOM ROC ADX 005930 9988.HK 5 BTC-USD EURUSD=X ES=F AAPL.O BHP.AX $AAPL INF
""".split()  # noqa: SIM905


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_symbol_that_looks_like_something_else(symbol, tmp_path):
    table = frame([*OTHERS, symbol])
    table.to_csv(tmp_path / "t.csv", index=False)
    for source in (table, tmp_path / "t.csv"):
        prices = quiet(source)
        assert prices.symbols == (*OTHERS, symbol)
        np.testing.assert_allclose(prices.close[-1], table[symbol])


SELDOM = """
NR BID PE MID CAP SEQ STD BETA MIN VIX SPX CHG Target Gap Total Nasdaq EBIT EBITDA ROE FCF CAPEX DXY TNX PMI SMB YTD
""".split()  # noqa: SIM905


@pytest.mark.parametrize("symbol", SELDOM)
def test_a_word_that_is_seldom_a_symbol_is_taken_with_a_warning(symbol):
    with pytest.warns(DataWarning, match="taken for a stock"):
        assert read_prices(frame([*OTHERS, symbol])).symbols == (*OTHERS, symbol)
    assert quiet(frame([*OTHERS, symbol]), symbols=[symbol, "AAPL"]).symbols == (symbol, "AAPL")


@pytest.mark.parametrize("symbol", ["low", "open", "dow", "day"])
def test_a_word_in_lower_case_is_a_stock_among_others_in_lower_case(symbol):
    others = [name.lower() for name in OTHERS]
    with pytest.warns(DataWarning, match="taken for a stock"):
        assert read_prices(frame([*others, symbol])).symbols == (*others, symbol)
    with pytest.raises(DataError, match="not a stock"):
        read_prices(frame([*OTHERS, symbol]))


def test_companies_by_name():
    names = [
        "T. Rowe Price",
        "Open Text",
        "Close Brothers",
        "Trade Desk",
        "S&P Global",
        "Intercontinental Exchange",
        "3M",
    ]
    assert quiet(frame(names)).symbols == tuple(names)
    names = ["Change Healthcare", "Split Rock", "Target", "Level 3"]
    assert quiet(frame([*names, "Apple"]), symbols=names).symbols == tuple(names)


def test_several_hundred_symbols():
    names = [f"{a}{b}{c}" for a in "ABCDEFGH" for b in "JKLMNOQV" for c in "QRSTUWXY"][:490]
    names += ["ON", "ALL", "KEY", "OPEN", "TRUE", "NAN", "BRK.B", "0700.HK", "600519.SS", "^GSPC"]
    assert quiet(frame(names)).symbols == tuple(names)


@pytest.mark.parametrize(
    "numbers",
    [
        DAYS.strftime("%Y%m%d").astype(int),
        (DAYS + pd.Timedelta(days=2)).strftime("%Y%m%d").astype(int),
        DAYS.strftime("%Y%m").astype(int),
        DAYS.year,
        DAYS.month,
        DAYS.day,
        DAYS.weekday + 1,
        DAYS.astype("datetime64[s]").astype("int64"),
        DAYS.astype("datetime64[ms]").astype("int64") + 57_600_000,
        DAYS.astype("datetime64[ns]").astype("int64"),
        DAYS.astype("datetime64[s]").astype("int64") // 86_400 + 25_569,
        [day.toordinal() for day in DAYS],
    ],
)
@pytest.mark.parametrize("cast", [int, float, str])
def test_days_under_another_name(numbers, cast):
    with pytest.raises(DataError, match="of the day, not prices"):
        read_prices(frame(OTHERS).assign(XYZ=[cast(number) for number in numbers]))


@pytest.mark.parametrize("order", [1, -1])
def test_row_numbers_under_another_name(order):
    with pytest.warns(DataWarning, match="'XYZ': counts the rows"):
        read_prices(frame(OTHERS).assign(XYZ=np.arange(1, len(DAYS) + 1)[::order]))


def test_whole_prices_are_prices():
    quiet(frame(OTHERS).assign(XYZ=np.arange(1990, 1990 + len(DAYS))))
    quiet(pd.DataFrame({"Date": DAYS, "A": np.arange(1.0, 41), "B": np.arange(2.0, 42)}))


def test_columns_called_like_days():
    table = frame(OTHERS).rename(columns={"XOM": "2020-01-02", "JPM": "2020-01-03 00:00:00"})
    with pytest.raises(DataError, match="has the name of a day"):
        read_prices(table)


def test_a_column_that_pandas_renamed(tmp_path):
    table = frame(OTHERS).rename(columns={"XOM": "AAPL.1"})
    with pytest.raises(DataError, match="second of two columns 'AAPL'"):
        read_prices(table)
    assert quiet(table, symbols=["AAPL", "AAPL.1"]).symbols == ("AAPL", "AAPL.1")


@pytest.mark.parametrize(
    "index", [DAYS.strftime("%Y-%m-%d"), DAYS.date, DAYS.to_period("D"), DAYS.strftime("%Y%m%d").astype(int)]
)
def test_an_index_of_days_without_a_name(index):
    table = frame(OTHERS)
    prices = quiet(table.drop(columns="Date").set_axis(index, axis=0))
    np.testing.assert_array_equal(prices.close, quiet(table).close)
    np.testing.assert_array_equal(prices.dates, quiet(table).dates)


@pytest.mark.parametrize("by_ticker", [False, True])
@pytest.mark.parametrize("names", [None, ["Price", "Ticker"]])
def test_two_levels_with_numbers_for_symbols(by_ticker, names, tmp_path):
    closes = frame(["005930", "9988", "AAPL"]).set_index("Date").rename_axis(None)
    table = pd.concat({"Close": closes, "Volume": closes * 0}, axis=1)
    table = table.swaplevel(axis=1).sort_index(axis=1) if by_ticker else table
    table.columns.names = names or [None, None]
    table.to_csv(tmp_path / "t.csv")
    prices = quiet(tmp_path / "t.csv")
    assert sorted(prices.symbols) == sorted(closes.columns)
    np.testing.assert_allclose(prices.close, closes[list(prices.symbols)].T)


SPELLINGS = "Adj Cl|adjc|adj_c|aclose|Adjusted NAV|adjusted value|Ajusted Close|Adust Close|ajdclose|Cl Adj|close_hfq"


@pytest.mark.parametrize("name", [*SPELLINGS.split("|"), "total_return_index", "TR Close", "Close (adj. for splits)"])
def test_a_seldom_spelling_of_adjusted_close(name):
    adjusted = frame(OTHERS)["AAPL"]
    raw = adjusted * np.where(np.arange(len(DAYS)) < 20, 2, 1)
    one = pd.DataFrame({"Date": DAYS, "Close": raw, name: adjusted})
    prices = quiet(pd.concat([one.assign(Symbol="A"), one.assign(Symbol="B")]))
    np.testing.assert_allclose(prices.close[0], adjusted)


@pytest.mark.parametrize(
    "name",
    ["Adj Close SMA", "adj_close_lag1", "prev_adj_close", "adj close t-1", "risk_adjusted_price"],
)
def test_values_computed_from_an_adjusted_close_are_not_one(name):
    one = pd.DataFrame({"Date": DAYS, "Close": np.linspace(10, 12, 40), name: np.linspace(50, 60, 40)})
    prices = quiet(pd.concat([one.assign(Symbol="A"), one.assign(Symbol="B")]))
    np.testing.assert_array_equal(prices.close[0], one.Close)


def test_a_stock_and_a_field_of_it():
    with pytest.raises(DataError, match="hold several fields of a stock"):
        read_prices(frame(["AAPL", "AAPL Close", "MSFT", "MSFT Close"]))
    assert quiet(frame(["AAPL_Close", "MSFT_Close"])).symbols == ("AAPL_Close", "MSFT_Close")


WRITINGS = "Sentix tenkan 52w_high US10Y_yld kdj_k Buy REVENUE FEDFUNDS DGS10 M2".split()  # noqa: SIM905


@pytest.mark.parametrize("name", WRITINGS)
def test_a_name_in_another_writing_than_the_symbols_is_taken_with_a_warning(name):
    with pytest.warns(DataWarning, match=f"'{name}': is taken for a stock"):
        assert read_prices(frame([*OTHERS, name])).symbols == (*OTHERS, name)
    quiet(frame([*OTHERS, name]), symbols=[*OTHERS, name])


@pytest.mark.parametrize(
    "names",
    [
        "Apple Microsoft Exxon aapl",
        "RELIANCE TCS INFY SBIN HDFCBANK",
        "TCS INFY SBIN RELIANCE",
        "PETR4 VALE3 BOVA11 ABEV3",
        "BTCUSDT ETHUSDT SOLUSDT",
    ],
)
def test_names_in_one_writing(names):
    assert quiet(frame(names.split())).symbols == tuple(names.split())
