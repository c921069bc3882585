"""Classification of columns (stocks, fields, adjusted closes, row numbers) and of cells that are days."""

from __future__ import annotations

import numpy as np
import pytest

from hiermt.data import DataError, DataWarning, read_prices
from hiermt.data.column_names import is_adjusted, is_field
from support.price_tables import quiet

pd = pytest.importorskip("pandas")
DAYS = pd.bdate_range("2024-01-02", periods=12)


def frame(columns, seed=0):
    """Random walks far apart, one a column."""
    steps = np.random.default_rng(seed).normal(0, 0.02, (len(DAYS), len(columns)))
    values = np.exp(np.cumsum(steps, axis=0)) * np.linspace(20, 400, len(columns))
    return pd.DataFrame(values, columns=list(columns)).assign(Date=DAYS)[["Date", *columns]]


def forms(table, tmp_path):
    """The same table as a DataFrame, a CSV and a Parquet file."""
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    return table, tmp_path / "t.csv", tmp_path / "t.parquet"


class TestStocks:
    @pytest.mark.parametrize(
        "symbols",
        [
            "AAPL OPEN LOW V",
            "OPEN LOW V",
            "LOW OPEN",
            "V C O H",
            "C V",
            "T F",
            "AAPL DAY DOW LINE",
            "HIGH TIDE",
            "AAPL ALL TRUE COST CCI",
            "BRK.B BRK-A",
            "^GSPC BTC-USD",
            "005930.KS 600519",
            "700 9988 5",
            "COST TRUE NOW ALL ON IT",
            "Apple Bitcoin",
            "ADJ.L CLOSEX",
            "A AA AAA",
        ],
    )
    def test_symbols_that_are_words_too(self, symbols, tmp_path):
        table = frame(symbols.split())
        for source in forms(table, tmp_path):
            prices = quiet(source)
            assert prices.symbols == tuple(symbols.split())
            np.testing.assert_array_equal(prices.close, table[symbols.split()].T)

    @pytest.mark.hostile("price-columns")
    @pytest.mark.parametrize(
        "columns",
        [
            "Close VWAP",
            "close vwap",
            "CLOSE VWAP",
            "Open High Low Close Volume",
            "OPEN HIGH LOW CLOSE VOLUME",
            "OPEN HIGH LOW VOLUME",
            "OPEN HIGH LOW",
            "OPEN HIGH LOW XYZ",
            "open low",
            "o h l c v",
            "O H L C V",
            "c v",
            "Close Foo",
            "Adj.Close Foo",
            "adjClose adjHigh adjLow adjOpen",
            "Price Vol. Change%",
            "Last Turnover",
            "close trades",
            "AAPL MSFT Volume",
            "AAPL MSFT VWAP",
            "AAPL MSFT Close",
            "AAPL MSFT Open",
            "AAPL MSFT open",
            "AAPL MSFT rsi",
            "AAPL MSFT SMA_20",
            "AAPL MSFT Returns",
            "AAPL MSFT Year",
            "AAPL MSFT tic",
            "AAPL MSFT Dividends",
            "AAPL MSFT stock_splits",
            "AAPL_Open AAPL_Close MSFT_Open MSFT_Close",
            "AAPL_Close AAPL_Volume",
            "AAPL.volume MSFT.volume",
            "Close_AAPL High_AAPL Close_MSFT",
        ],
    )
    def test_fields_are_not_stocks(self, columns, tmp_path):
        for source in forms(frame(columns.split()), tmp_path):
            with pytest.raises(DataError, match=r"one stock only|not a stock|several fields"):
                read_prices(source)

    def test_history_of_one_stock_with_dividends_and_splits(self, tmp_path):
        table = frame(["Open", "High", "Low", "Close", "Volume"]).assign(**{"Dividends": 0.0, "Stock Splits": 0.0})
        for source in forms(table, tmp_path):
            with pytest.raises(DataError, match="one stock only"):
                read_prices(source)

    def test_open_and_low_of_one_stock_in_capitals(self):
        table = frame(["OPEN"])
        with pytest.raises(DataError, match="one stock only"):
            read_prices(table.assign(LOW=table.OPEN * 0.98))

    def test_an_indicator_that_is_a_symbol_is_taken_with_a_warning(self):
        with pytest.warns(DataWarning, match="column 'RSI': is taken for a stock"):
            assert read_prices(frame(["AAPL", "RSI"])).symbols == ("AAPL", "RSI")

    def test_naming_the_stocks_settles_it(self, tmp_path):
        table = frame(["AAPL", "Open", "low", "Volume"])
        for source in forms(table, tmp_path):
            prices = quiet(source, symbols=["low", "AAPL", "Open"])
            np.testing.assert_array_equal(prices.close, table[["low", "AAPL", "Open"]].T)
            with pytest.raises(DataError, match="column 'Volume': is a field"):
                read_prices(source, symbols=["AAPL", "Volume"])

    def test_naming_stocks_of_a_table_of_one(self):
        with pytest.raises(DataError, match="one stock only"):
            read_prices(frame(["Close", "VWAP"]), symbols=["AAPL", "MSFT"])
        with pytest.raises(DataError, match="one stock only"):
            read_prices(frame(["Close", "VWAP"]), symbols=["Close", "VWAP"])

    @pytest.mark.parametrize("name", ["Unnamed: 0", "", "index", "Index", "level_0", "No.", "row", "#", "\ufeff", None])
    @pytest.mark.parametrize("start", [0, 1])
    def test_row_numbers_are_left_out(self, name, start, tmp_path):
        table = frame(["AAA", "BBB"])
        table.insert(0, name, np.arange(start, start + len(table)))
        table = table.sample(frac=1, random_state=0)
        sources = [table]
        if name is not None:
            table.to_csv(tmp_path / "t.csv", index=False)
            sources.append(tmp_path / "t.csv")
        for source in sources:
            with pytest.warns(DataWarning, match="numbers the rows"):
                prices = read_prices(source)
            assert prices.symbols == ("AAA", "BBB")

    @pytest.mark.parametrize("name", ["Unnamed: 3", "", "index", "id"])
    def test_prices_without_a_name_are_refused(self, name, tmp_path):
        table = frame(["AAA", "BBB", "CCC"]).rename(columns={"CCC": name})
        table.to_csv(tmp_path / "t.csv", index=False)
        for source in (table, tmp_path / "t.csv"):
            with pytest.raises(DataError, match=r"has no name|does not name a stock"):
                read_prices(source)

    def test_positions_are_not_names(self):
        table = pd.DataFrame(frame(["A", "B"])[["A", "B"]].to_numpy(), index=DAYS)
        with pytest.raises(DataError, match="positions for names"):
            read_prices(table)

    @pytest.mark.parametrize("header", ["", "index", "Unnamed: 0"])
    def test_the_days_in_a_first_column_without_a_name(self, header, tmp_path):
        table = frame(["AAA", "BBB"]).rename(columns={"Date": header})
        table.to_csv(tmp_path / "t.csv", index=False)
        for source in (table, tmp_path / "t.csv"):
            np.testing.assert_array_equal(quiet(source).dates, DAYS.to_numpy().astype("datetime64[D]"))

    def test_a_delimiter_at_the_end_of_each_line(self, tmp_path):
        (tmp_path / "t.csv").write_text("Date,AAA,BBB,\n2024-01-02,1,2,\n2024-01-03,3,4,\n")
        np.testing.assert_array_equal(quiet(tmp_path / "t.csv").close, [[1, 3], [2, 4]])

    @pytest.mark.parametrize("other", ["AAA ", " AAA", "\ufeffAAA", "AAA\u00a0", "AAA\u200b", "\tAAA"])
    def test_one_name_twice(self, other, tmp_path):
        wide = frame(["AAA", other])
        for source in forms(wide, tmp_path):
            with pytest.raises(DataError, match="there twice"):
                read_prices(source)
        long = frame(["AAA", "BBB"]).melt("Date", var_name="Symbol", value_name="Close")
        marked = long.assign(Symbol=[other if name == "AAA" and i % 2 else name for i, name in enumerate(long.Symbol)])
        for source in forms(marked, tmp_path):
            np.testing.assert_array_equal(quiet(source).close, quiet(long).close)

    def test_names_that_differ_by_case(self, tmp_path):
        wide = frame(["AAA", "aaa"])
        for table in (wide, wide.melt("Date", var_name="Symbol", value_name="Close")):
            for source in forms(table, tmp_path):
                with pytest.raises(DataError, match="'AAA' and 'aaa' differ by case"):
                    read_prices(source)

    def test_two_columns_of_one_field(self):
        long = frame(["AAA", "BBB"]).melt("Date", var_name="Symbol", value_name="Close")
        for name in ("close", "Close ", "CLOSE", "Close*"):
            with pytest.raises(DataError, match=r"same name|twice"):
                read_prices(long.assign(**{name: 1.0}))

    def test_faults_of_other_stocks_are_ignored(self, tmp_path):
        wide = frame(["AAA", "BBB", "DEAD", "TEXT", "ZERO"]).assign(DEAD=np.nan, TEXT="n.a.", ZERO=0.0)
        wide.loc[5:, "BBB"] = np.nan
        long = wide.melt("Date", var_name="Symbol", value_name="Close")
        odd = pd.DataFrame({"Symbol": ["OLD", "OLD"], "Date": ["1999-01-01", "gone"], "Close": ["1", "2"]})
        mixed = pd.concat([long.astype({"Date": str}), odd], ignore_index=True)
        for table in (wide, long, mixed):
            table.to_csv(tmp_path / "t.csv", index=False)
            for source in (table, tmp_path / "t.csv"):
                with pytest.raises(DataError):
                    read_prices(source)
                with pytest.warns(DataWarning) as caught:
                    prices = read_prices(source, symbols=["BBB", "AAA"])
                assert not any(name in str(w.message) for w in caught for name in ("DEAD", "TEXT", "ZERO", "OLD"))
                np.testing.assert_array_equal(prices.close, wide[["BBB", "AAA"]].to_numpy()[:5].T)

    @pytest.mark.parametrize("symbols", ["AAA", [1, 2], ["AAA", None]])
    def test_symbols_are_strings(self, symbols):
        with pytest.raises(TypeError, match="symbols: expected a sequence of strings"):
            read_prices(frame(["AAA", "BBB"]), symbols=symbols)

    def test_booleans_and_times_are_not_prices(self):
        for cells in ([True] * 12, pd.Series(DAYS), pd.Series(DAYS) - DAYS[0], [1 + 2j] * 12, [True, 1.0] * 6):
            with pytest.raises(DataError, match=r"column 'BBB': .* is not a number"):
                read_prices(frame(["AAA"]).assign(BBB=cells))

    @pytest.mark.parametrize("dtype", ["Float64", "float32", "object", "double[pyarrow]", "category", "decimal"])
    def test_dtypes_of_numbers(self, dtype):
        from decimal import Decimal

        table = frame(["AAA", "BBB"])
        cells = table.BBB.round(2)
        other = cells.map(lambda value: Decimal(str(value))) if dtype == "decimal" else cells.astype(dtype)
        expected = cells.astype("float32") if dtype == "float32" else cells
        np.testing.assert_array_equal(quiet(table.assign(BBB=other)).close[1], expected)


ADJUSTED = (
    "Adj Close|adj close|ADJ CLOSE|Adj. Close|adj_close|Adj-Close|AdjClose|adjClose|adjclose|Adjusted Close"
    "|AdjustedClose|adjusted_close|Adjusted_Close|adjusted|Adjusted|adj|Close_Adj|close_adj|closeadj|Close (adj)"
    "|Close Adjusted|Adj Close**|Adj Close*|5. adjusted close|Split Adjusted Close|adjusted closing price"
    "|Adj Close Price|adj_price|Adj.Close|\ufeffAdj Close|Adj\u00a0Close|Close.Adj|AdjustedClosePrice|adjusted-close"
)


class TestAdjusted:
    @pytest.mark.hostile("price-columns")
    @pytest.mark.parametrize("name", ADJUSTED.split("|"))
    def test_every_spelling_is_one(self, name, tmp_path):
        assert is_adjusted(name)
        assert is_field(name)
        close = frame(["AAA", "BBB"])
        factor = np.where(np.arange(len(DAYS)) < 6, 0.5, 1.0)
        raw = close.assign(AAA=close.AAA / factor)
        long = raw.melt("Date", var_name="Symbol", value_name="Close")
        long = long.assign(Open=long.Close * 0.99, High=long.Close * 1.02, Low=long.Close * 0.98)
        long[name] = close.melt("Date").value
        for source in forms(long, tmp_path):
            prices = quiet(source)
            np.testing.assert_allclose(prices.close, close[["AAA", "BBB"]].T, rtol=1e-14)
            np.testing.assert_allclose(prices.high, 1.02 * close[["AAA", "BBB"]].T, rtol=1e-14)
        only = long[["Date", "Symbol", name]]
        np.testing.assert_array_equal(quiet(only).close, close[["AAA", "BBB"]].T)

    @pytest.mark.parametrize("name", ["close_unadj", "Unadjusted Close", "adj_factor", "adj close return"])
    def test_names_that_are_not_adjusted_closes(self, name):
        assert not is_adjusted(name)
        long = frame(["AAA", "BBB"]).melt("Date", var_name="Symbol", value_name="Close")
        np.testing.assert_array_equal(quiet(long.assign(**{name: 7.0})).close[0], long.Close[:12])

    def test_two_are_refused(self):
        long = frame(["AAA", "BBB"]).melt("Date", var_name="Symbol", value_name="Close")
        with pytest.raises(DataError, match="'Adj Close' and 'adjusted' are both adjusted closes"):
            read_prices(long.assign(**{"Adj Close": long.Close, "adjusted": long.Close / 2}))

    def test_bars_that_were_not_adjusted_do_not_join_a_close_that_was(self):
        long = frame(["AAA", "BBB"]).melt("Date", var_name="Symbol", value_name="Adj Close")
        bars = dict.fromkeys(("Open", "High", "Low"), long["Adj Close"] * 2)
        with pytest.warns(DataWarning, match="Open, High, Low cannot be scaled"):
            assert not read_prices(long.assign(**bars)).has_bars
        prices = quiet(long.assign(**bars, adjOpen=long["Adj Close"], Adj_High=long["Adj Close"], adjLow=1.0))
        assert prices.has_bars
        np.testing.assert_array_equal(prices.high, prices.close)

    @pytest.mark.parametrize(("close", "adjusted"), [(1e-300, 1e200), (1e300, 1e-300)])
    def test_an_adjustment_beyond_the_numbers(self, close, adjusted):
        long = frame(["AAA", "BBB"]).melt("Date", var_name="Symbol", value_name="Close")
        long = long.assign(**{"Adj Close": long.Close, "Open": 1e9, "High": 1e9, "Low": 1e-9})
        long.loc[3, ["Close", "Adj Close"]] = close, adjusted
        with pytest.raises(DataError, match=r"row 3, column '.*': .* times the adjustment"):
            read_prices(long)


WRONG_DAYS = {
    "months": ["202011", "202012", "202101"],
    "months, dashed": ["2020-11", "2020-12", "2021-01"],
    "months, slashed": ["11/2020", "12/2020", "01/2021"],
    "years": ["2018", "2019", "2020"],
    "quarters": ["2020Q1", "2020Q2", "2020Q3"],
    "quarters, behind": ["Q1 2020", "Q2 2020", "Q3 2020"],
    "weeks": ["2020-W01", "2020-W02", "2020-W03"],
    "seconds": ["1704153600", "1704240000", "1704326400"],
    "milliseconds": ["1704153600000", "1704240000000", "1704326400000"],
    "nanoseconds": ["1704153600000000000", "1704240000000000000", "1704326400000000000"],
    "serial numbers": ["45293", "45294", "45295"],
    "serial numbers with a time": ["45293.5", "45294.5", "45295.5"],
    "two-digit years": ["240102", "240103", "240104"],
    "two-digit years, dashed": ["24-01-02", "24-01-03", "24-01-04"],
    "row numbers": ["0", "1", "2"],
    "times": ["09:30", "09:31", "09:32"],
    "mixed separators": ["2024-01/02", "2024-01/03", "2024-01/04"],
    "something behind": ["2024-01-021", "2024-01-031", "2024-01-041"],
    "too early": ["0202-01-01", "0202-01-02", "0202-01-03"],
    "no such day": ["2023-02-29", "2023-02-30", "2023-02-31"],
}


class TestDays:
    @pytest.mark.hostile("price-columns")
    @pytest.mark.parametrize("cells", WRONG_DAYS.values(), ids=WRONG_DAYS)
    def test_cells_that_are_not_days_are_refused(self, cells, tmp_path):
        table = pd.DataFrame({"Date": cells, "AAA": [1.0, 2, 3], "BBB": [4.0, 5, 6]})
        for source in forms(table, tmp_path):
            with pytest.raises(DataError, match=r"(line 2|row 0), column 'Date': '.*' is not a date"):
                read_prices(source)
        for cast in (int, float):
            try:
                numbers = table.assign(Date=table.Date.map(cast))
            except ValueError:
                continue
            for source in forms(numbers, tmp_path):
                with pytest.raises(DataError, match=r"(line 2|row 0), column 'Date': '.*' is not a date"):
                    read_prices(source)

    def test_the_message_says_what_it_looks_like(self):
        for name, what in (("months", "a month"), ("seconds", "seconds since 1970"), ("serial numbers", "spreadsheet")):
            table = pd.DataFrame({"Date": WRONG_DAYS[name], "AAA": [1.0, 2, 3], "BBB": [4.0, 5, 6]})
            with pytest.raises(DataError, match=rf"looks like .*{what}"):
                read_prices(table)

    @pytest.mark.parametrize(
        "write",
        [
            lambda days: days.strftime("%Y-%m-%d"),
            lambda days: days.strftime("%Y%m%d"),
            lambda days: days.strftime("%Y%m%d").astype(int),
            lambda days: days.strftime("%Y%m%d").astype(float),
            lambda days: days.strftime("%Y/%m/%d %H:%M"),
            lambda days: days.strftime("%Y-%m-%dT%H:%M:%SZ"),
            lambda days: days.strftime("%d.%m.%Y"),
            lambda days: days.strftime("%m/%d/%Y 16:00:00"),
            lambda days: days.date,
            lambda days: days,
            lambda days: days.tz_localize("Asia/Tokyo"),
            lambda days: days.tz_localize("America/New_York").astype(str),
            lambda days: days.astype("timestamp[ns][pyarrow]"),
            lambda days: days.astype("date32[pyarrow]"),
            lambda days: days.to_period("D"),
            lambda days: pd.Categorical(days.strftime("%Y-%m-%d")),
        ],
    )
    def test_days(self, write):
        days = pd.bdate_range("2024-01-02", periods=30)
        table = pd.DataFrame({"Date": write(days), "AAA": np.arange(1.0, 31), "BBB": np.arange(2.0, 32)})
        np.testing.assert_array_equal(quiet(table).dates, days.to_numpy().astype("datetime64[D]"))

    @pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
    @pytest.mark.parametrize("name", ["Date", "trade_date", None, "when"])
    def test_an_index_of_days_is_the_date(self, name, zone):
        table = frame(["AAA", "BBB"]).set_index("Date").rename_axis(name).tz_localize(zone)
        np.testing.assert_array_equal(quiet(table).dates, DAYS.to_numpy().astype("datetime64[D]"))
