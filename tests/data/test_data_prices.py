"""Reading prices: repairs, refusals and their messages."""

from __future__ import annotations

import gzip
import subprocess
import sys

import numpy as np
import pytest

from hiermt.data import DataError, DataWarning, load_sp500, read_prices, read_sectors
from hiermt.data import sp500 as sp500_module
from support.price_tables import quiet

pd = pytest.importorskip("pandas")
DAYS = ["2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05"]
LONG = """Symbol,Date,Open,High,Low,Close,Volume
AAA,2024-01-02,10,11,9,10.5,100
AAA,2024-01-03,10.5,12,10,11,100
AAA,2024-01-04,11,11.5,10.5,11.2,100
BBB,2024-01-02,20,21,19,20.5,100
BBB,2024-01-03,20.5,22,20,21,100
BBB,2024-01-04,21,21.5,20.5,21.2,100
"""


def write(tmp_path, text, name="prices.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def wide(rows):
    return "Date,AAA,BBB\n" + "".join(f"{day},{a},{b}\n" for day, a, b in rows)


class TestForms:
    def test_long_with_bars(self, tmp_path):
        prices = quiet(write(tmp_path, LONG))
        assert prices.symbols == ("AAA", "BBB")
        assert prices.has_bars
        assert [str(day) for day in prices.dates] == DAYS[:3]
        np.testing.assert_array_equal(prices.close, [[10.5, 11, 11.2], [20.5, 21, 21.2]])
        np.testing.assert_array_equal(prices.high, [[11, 12, 11.5], [21, 22, 21.5]])

    def test_wide_is_close_only(self, tmp_path):
        prices = quiet(write(tmp_path, wide([(DAYS[0], 1, 2), (DAYS[1], 1.5, 2.5)])))
        assert not prices.has_bars
        np.testing.assert_array_equal(prices.close, [[1, 1.5], [2, 2.5]])

    def test_rows_in_any_order_keep_the_order_of_first_naming(self, tmp_path):
        lines = LONG.splitlines()
        shuffled = "\n".join([lines[0], *reversed(lines[1:])])
        prices = quiet(write(tmp_path, shuffled))
        assert prices.symbols == ("BBB", "AAA")
        np.testing.assert_array_equal(prices.close[1], [10.5, 11, 11.2])

    @pytest.mark.hostile("price-cells")
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
    @pytest.mark.parametrize("newline", ["\n", "\r\n"])
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_byte_order_mark_line_ends_and_delimiters(self, tmp_path, encoding, newline, delimiter):
        text = LONG.replace(",", delimiter).replace("\n", newline)
        prices = quiet(write(tmp_path, text, encoding=encoding))
        np.testing.assert_array_equal(prices.close[0], [10.5, 11, 11.2])

    def test_gzip(self, tmp_path):
        path = tmp_path / "prices.csv.gz"
        path.write_bytes(gzip.compress(LONG.encode()))
        assert quiet(path).symbols == ("AAA", "BBB")

    def test_parquet_equals_csv(self, tmp_path):
        csv = write(tmp_path, LONG)
        pd.read_csv(csv).to_parquet(tmp_path / "prices.parquet")
        np.testing.assert_array_equal(quiet(tmp_path / "prices.parquet").high, quiet(csv).high)

    def test_data_frames_long_wide_and_two_levels(self):
        index = pd.DatetimeIndex(DAYS[:2])
        closes = pd.DataFrame({"AAA": [1.0, 1.5], "BBB": [2.0, 2.5]}, index=index)
        two_levels = pd.concat({"Close": closes, "Open": closes, "High": closes, "Low": closes}, axis=1)
        long = closes.rename_axis("Date").reset_index().melt("Date", var_name="Ticker", value_name="Close")
        for frame in (closes, two_levels, long):
            prices = quiet(frame)
            assert sorted(prices.symbols) == ["AAA", "BBB"]
            np.testing.assert_array_equal(prices.close[prices.symbols.index("AAA")], [1, 1.5])
        assert quiet(two_levels).has_bars

    def test_symbols_that_look_like_missing_values(self, tmp_path):
        rows = "".join(f"{name},{day},5\n" for name in ("NA", "NAN", "TRUE") for day in DAYS)
        assert quiet(write(tmp_path, "Symbol,Date,Close\n" + rows)).symbols == ("NA", "NAN", "TRUE")

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("2024-01-12", "2024-01-13"),
            ("2024/1/12", "2024/1/13"),
            ("20240112", "20240113"),
            ("2024-01-12 00:00:00+09:00", "2024-01-13 00:00:00+09:00"),
            ("2024-01-12T16:00:00Z", "2024-01-13T16:00:00Z"),
            ("01/12/2024", "01/13/2024"),
            ("12.01.2024", "13.01.2024"),
        ],
    )
    def test_ways_to_write_dates(self, tmp_path, first, second):
        prices = quiet(write(tmp_path, wide([(first, 1, 2), (second, 1, 2)])))
        assert [str(day) for day in prices.dates] == ["2024-01-12", "2024-01-13"]

    def test_adjusted_close_scales_the_bar(self, tmp_path):
        lines = LONG.splitlines()
        text = "\n".join([lines[0] + ",Adj Close", *(f"{line},{float(line.split(',')[5]) / 2}" for line in lines[1:])])
        prices = quiet(write(tmp_path, text))
        np.testing.assert_allclose(prices.close[0], [5.25, 5.5, 5.6])
        np.testing.assert_allclose(prices.high[0], [5.5, 6, 5.75])

    def test_some_symbols_in_the_given_order(self, tmp_path):
        path = write(tmp_path, LONG + "CCC,2024-01-03,1,1,1,1,1\n")
        prices = quiet(path, symbols=["BBB", "AAA"])
        assert prices.symbols == ("BBB", "AAA")
        np.testing.assert_array_equal(prices.close[0], [20.5, 21, 21.2])
        with pytest.raises(DataError, match="no prices for ZZZ"):
            read_prices(path, symbols=["AAA", "ZZZ"])
        with pytest.raises(DataError, match="repeated"):
            read_prices(path, symbols=["AAA", "AAA"])


class TestRepairs:
    def test_repeated_row_is_dropped(self, tmp_path):
        path = write(tmp_path, LONG + "AAA,2024-01-04,11,11.5,10.5,11.2,100\n")
        with pytest.warns(DataWarning, match=r"1 row\(s\) are repeated, first prices.csv line 8"):
            prices = read_prices(path)
        assert prices.close.shape == (2, 3)

    def test_short_gap_carries_the_last_close(self, tmp_path):
        text = "\n".join(line for line in LONG.splitlines() if not line.startswith("AAA,2024-01-03"))
        with pytest.warns(DataWarning, match="1 missing row.*AAA on 2024-01-03"):
            prices = read_prices(write(tmp_path, text))
        np.testing.assert_array_equal(prices.close[0], [10.5, 10.5, 11.2])
        np.testing.assert_array_equal(prices.open[0], [10, 10.5, 11])
        np.testing.assert_array_equal(prices.low[0], [9, 10.5, 10.5])

    def test_empty_cell_is_a_missing_row(self, tmp_path):
        path = write(tmp_path, wide([(DAYS[0], 1, 2), (DAYS[1], "", 3), (DAYS[2], 2, 4)]))
        with pytest.warns(DataWarning, match="AAA on 2024-01-03"):
            np.testing.assert_array_equal(read_prices(path).close[0], [1, 1, 2])

    def test_unequal_histories_are_cut_to_the_shared_days(self, tmp_path):
        path = write(tmp_path, wide([(DAYS[0], "", 2), (DAYS[1], 1, 3), (DAYS[2], 2, 4), (DAYS[3], 3, "")]))
        with pytest.warns(DataWarning, match="AAA starts on 2024-01-03, BBB ends on 2024-01-04.*2 of 4 days"):
            prices = read_prices(path)
        np.testing.assert_array_equal(prices.close, [[1, 2], [3, 4]])

    def test_blank_lines_do_not_shift_the_line_numbers(self, tmp_path):
        path = write(tmp_path, "Date,AAA,BBB\n\n2024-01-02,1,2\n\n2024-01-03,x,2\n")
        with pytest.raises(DataError, match="line 5, column 'AAA': 'x'"):
            read_prices(path)

    def test_missing_open_falls_back_to_close(self, tmp_path):
        text = LONG.replace("Open", "Start")
        with pytest.warns(DataWarning, match="Open missing"):
            assert not read_prices(write(tmp_path, text)).has_bars


REFUSED = {
    "text in a number": (LONG.replace("21.2", "n.a."), "prices.csv line 7, column 'Close': 'n.a.' is not a number"),
    "thousands sign": (LONG.replace(",21.2,", ',"1,021.2",'), "line 7, column 'Close': '1,021.2' is not a number"),
    "infinity": (LONG.replace("21.2", "inf"), "line 7, column 'Close': .*not a number"),
    "zero price": (LONG.replace("21.2", "0"), "line 7, column 'Close': the price is 0"),
    "negative price": (LONG.replace(",9,", ",-9,"), "line 2, column 'Low': the price is -9"),
    "high below low": (LONG.replace(",12,10,", ",9,10,"), "line 3, column 'High': 9 is below the 10 of 'Low'"),
    "bad date": (LONG.replace("BBB,2024-01-03", "BBB,2024-13-03"), "line 6, column 'Date': '2024-13-03' is not a date"),
    "day or month first": (wide([("03/04/2024", 1, 2), ("04/04/2024", 1, 2)]), "could be month/day or day/month"),
    "mixed dates": (wide([("2024-01-12", 1, 2), ("01/13/2024", 1, 2)]), "line 3, column 'Date': '01/13/2024'"),
    "two columns of one name": ("Date,A,B,A\n2024-01-02,1,2,3\n", "column 'A' is there twice"),
    "empty date": (LONG.replace("BBB,2024-01-03", "BBB,"), "line 6, column 'Date'"),
    "empty symbol": (LONG.replace("BBB,2024-01-03", ",2024-01-03"), "line 6, column 'Symbol': the symbol is empty"),
    "contradicting rows": (
        LONG + "AAA,2024-01-04,11,11.5,10.5,11.4,100\n",
        "line 8: AAA on 2024-01-04 is already in prices.csv line 4 with other prices",
    ),
    "no date column": (LONG.replace("Date", "When"), "no Date column"),
    "no close column": (LONG.replace("Close", "Last"), "no Close column"),
    "repeated column": (LONG.replace("Volume", "Close"), "column 'Close' is there twice"),
    "one symbol, long": ("\n".join(LONG.splitlines()[:4]), "one stock only .AAA."),
    "one symbol, bars without a Symbol column": (
        "".join(line[line.index(",") + 1 :] + "\n" for line in LONG.splitlines()),
        "one stock only",
    ),
    "one symbol, wide": ("Date,AAA\n2024-01-02,1\n", "one stock only"),
    "only a header": ("Symbol,Date,Close\n", "holds no rows"),
    "empty file": ("", "line 1 is empty"),
    "uneven rows": (LONG + "AAA,2024-01-05,1,2,3,4,5,6,7\n", "not a readable CSV.*line 8"),
    "no shared day": (wide([(DAYS[0], 1, ""), (DAYS[1], "", 2)]), "no day is shared"),
    "a stock without prices": (wide([(DAYS[0], 1, ""), (DAYS[1], 1, "")]), "BBB has no complete row"),
}


class TestRefusals:
    @pytest.mark.hostile("price-cells")
    @pytest.mark.filterwarnings("ignore::hiermt.data.DataWarning")
    @pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
    def test_message_names_place_and_cause(self, tmp_path, text, message):
        with pytest.raises(DataError, match=message) as caught:
            read_prices(write(tmp_path, text))
        assert "\n" not in str(caught.value)

    def test_long_gap(self, tmp_path):
        days = [str(day.date()) for day in pd.bdate_range("2024-01-01", periods=10)]
        rows = [(day, "" if 2 <= i < 8 else 1, 2) for i, day in enumerate(days)]
        path = write(tmp_path, wide(rows))
        with pytest.raises(
            DataError, match=f"AAA has no prices from {days[2]} to {days[7]}, 6 trading days.*missing='keep'"
        ):
            read_prices(path)
        with pytest.warns(DataWarning, match="6 missing"):
            read_prices(path, max_gap=6)

    def test_missing_file_and_wrong_type(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_prices(tmp_path / "none.csv")
        with pytest.raises(TypeError, match="a path or a pandas DataFrame, got int"):
            read_prices(3)

    @pytest.mark.hostile("price-cells")
    def test_damaged_files(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
        (tmp_path / "b.csv").write_bytes(b"Date,AAA,BBB\n2024-01-02,\xff\xfe,2\n")
        (tmp_path / "c.csv.gz").write_bytes(gzip.compress(LONG.encode())[:40])
        (tmp_path / "d.csv.gz").write_bytes(b"no gzip at all")
        for name in ("a.parquet", "b.csv", "c.csv.gz", "d.csv.gz"):
            with pytest.raises(DataError, match="not a readable"):
                read_prices(tmp_path / name)


class TestSp500:
    def test_real_prices(self):
        try:
            prices = load_sp500()
        except ImportError:
            pytest.skip("skfolio is not installed")
        assert prices.close.shape == (20, 8313)
        assert not prices.has_bars
        assert set(prices.symbols) == set(sp500_module.SP500_SECTORS)
        assert "survivorship" in sp500_module.LIMITS


@pytest.mark.parametrize(
    ("read", "match"),
    [
        (load_sp500, "reading the S&P 500 prices needs skfolio.*pip install --no-deps skfolio"),
        (lambda: read_prices("prices.csv"), r"reading prices needs pandas.*pip install 'hiermt\[data\]'"),
    ],
)
def test_a_missing_package_names_the_command(read, match, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=match):
        read()


def test_import_needs_neither_pandas_nor_pyg():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['pandas', 'torch_geometric', 'sklearn', 'matplotlib']));"
        "import hiermt.data, hiermt.cli.scores, hiermt.cli.main"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_read_sectors(tmp_path):
    path = write(tmp_path, "Symbol,Sector\nAAA,Tech\nBBB,Energy\n")
    assert read_sectors(path) == {"AAA": "Tech", "BBB": "Energy"}
    with pytest.raises(DataError, match="Symbol and Sector"):
        read_sectors(write(tmp_path, LONG))
