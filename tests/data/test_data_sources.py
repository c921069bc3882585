"""Files and frames of download tools, and damaged files."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest

from hiermt.data import DataError, DataWarning, read_adjacency, read_features, read_prices, read_sectors
from support.price_tables import quiet

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
DAYS = pd.bdate_range("2024-01-02", periods=8, name="Date")
FIELDS = ["Adj Close", "Close", "High", "Low", "Open", "Volume"]
WIDE = "Date,AAA,BBB\n2024-01-02,1,2\n2024-01-03,3,4\n"
GOOD = "Symbol,Date,Close\n" + "".join(f"{s},2024-01-{i:02d},{i + 1}.5\n" for s in "AB" for i in range(1, 29))


def download(symbols=("AAPL", "MSFT"), fields=FIELDS, names=("Price", "Ticker"), by_ticker=False):
    """What ``yf.download`` returns: two levels of columns over an index of days."""
    random = np.random.default_rng(0)
    columns = pd.MultiIndex.from_product([fields, symbols], names=names)
    frame = pd.DataFrame(index=DAYS, columns=columns, dtype=float)
    for symbol in symbols:
        close = 100 * np.exp(random.normal(0, 0.02, len(DAYS)).cumsum())
        bars = {"Close": close, "Adj Close": close / 2, "High": close * 1.02, "Low": close * 0.98, "Open": close * 1.01}
        for field in fields:
            frame[field, symbol] = bars.get(field, 1e6)
    return frame.swaplevel(axis=1).sort_index(axis=1) if by_ticker else frame


def every_form(frame, tmp_path):
    frame.to_csv(tmp_path / "t.csv")
    frame.to_csv(tmp_path / "t.csv.gz")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.reset_index().to_csv(tmp_path / "reset.csv", index=False)
    return frame, frame.reset_index(), *(tmp_path / name for name in ("t.csv", "t.csv.gz", "t.parquet", "reset.csv"))


class TestDownloads:
    @pytest.mark.parametrize("by_ticker", [False, True])
    @pytest.mark.parametrize("names", [("Price", "Ticker"), (None, None), ("Attributes", "Symbols")])
    @pytest.mark.parametrize(
        "fields", [FIELDS, FIELDS[1:], ["Adj Close"], ["Close"], ["Adj Close", "Volume"], [*FIELDS, "Stock Splits"]]
    )
    def test_two_levels(self, fields, names, by_ticker, tmp_path):
        frame = download(fields=fields, names=names, by_ticker=by_ticker)
        known = download()
        for source in every_form(frame, tmp_path):
            prices = quiet(source, symbols=["MSFT", "AAPL"])
            assert prices.has_bars == ("Open" in fields)
            close = known["Adj Close" if "Adj Close" in fields else "Close"]
            np.testing.assert_allclose(prices.close, close[["MSFT", "AAPL"]].T, rtol=1e-14)
            np.testing.assert_array_equal(prices.dates, DAYS.to_numpy().astype("datetime64[D]"))
            if prices.has_bars:
                np.testing.assert_allclose(prices.high, 1.02 * prices.close, rtol=1e-14)

    @pytest.mark.parametrize("line", [2, 3, 5])
    def test_blank_lines(self, line, tmp_path):
        path = tmp_path / "t.csv"
        lines = ["Price,Close,Close", "Ticker,A,B", *(f"{day:%Y-%m-%d},1,2" for day in DAYS)]
        path.write_text("\n".join([*lines[:line], "", *lines[line:]]))
        prices = quiet(path)
        assert prices.symbols == ("A", "B")
        assert prices.close.shape == (2, len(DAYS))

    def test_symbols_that_are_fields(self, tmp_path):
        frame = download(symbols=("OPEN", "LOW", "V"))
        for source in every_form(frame, tmp_path):
            assert set(quiet(source).symbols) == {"OPEN", "LOW", "V"}

    def test_one_stock(self, tmp_path):
        for frame in (download(symbols=("AAPL",)), download(symbols=("AAPL",), by_ticker=True)):
            for source in every_form(frame, tmp_path):
                with pytest.raises(DataError, match=r"one stock only \(AAPL\)"):
                    read_prices(source)

    def test_history_of_a_ticker(self, tmp_path):
        frame = download(symbols=("AAPL",), fields=FIELDS[1:]).droplevel(1, axis=1).assign(Dividends=0.0)
        frame["Stock Splits"] = 0.0
        for source in every_form(frame.tz_localize("America/New_York"), tmp_path):
            with pytest.raises(DataError, match="one stock only"):
                read_prices(source)
        both = pd.concat([frame.assign(Symbol=name) for name in ("AAPL", "MSFT")])
        for source in every_form(both, tmp_path):
            assert quiet(source).symbols == ("AAPL", "MSFT")

    def test_gaps_in_two_levels(self, tmp_path):
        frame = download(fields=FIELDS[1:])
        frame.loc[DAYS[3], (slice(None), "AAPL")] = np.nan
        frame.loc[DAYS[5]] = np.nan
        for source in every_form(frame, tmp_path):
            with pytest.warns(DataWarning, match=r"missing row.s.*2024-01-05|without a price"):
                prices = read_prices(source, symbols=["AAPL", "MSFT"])
            truth = frame["Close"].dropna(how="all").ffill()
            np.testing.assert_allclose(prices.close, truth[["AAPL", "MSFT"]].T, rtol=1e-14)

    def test_the_line_of_a_cell_under_three_header_lines(self, tmp_path):
        frame = download(fields=["Close", "Volume"])
        frame.loc[DAYS[2], ("Close", "MSFT")] = -1
        frame.to_csv(tmp_path / "t.csv")
        assert (tmp_path / "t.csv").read_text().splitlines()[5].startswith("2024-01-04")
        with pytest.raises(DataError, match="line 6, column 'Close': the price is -1"):
            read_prices(tmp_path / "t.csv")

    def test_other_levels(self):
        closes = download(fields=["Close"])["Close"]
        both = pd.concat({"Foo": closes, "Bar": closes}, axis=1)
        with pytest.raises(DataError, match="none has 'Close'"):
            read_prices(both)
        with pytest.raises(DataError, match="one or two levels of columns, got 3"):
            read_prices(pd.concat({"x": both}, axis=1))
        with pytest.raises(DataError, match="no Date among"):
            read_prices(pd.concat({"Close": closes.reset_index(drop=True)}, axis=1))
        twice = pd.concat([download(fields=["Close"])] * 2, axis=1)
        with pytest.raises(DataError, match="there twice"):
            read_prices(twice)

    def test_a_long_table_whose_first_row_is_text(self, tmp_path):
        (tmp_path / "t.csv").write_text("Symbol,Date,Close\nAAA,2024-01-02,n.a.\n")
        with pytest.raises(DataError, match=r"line 2, column 'Close': 'n\.a\.'"):
            read_prices(tmp_path / "t.csv")


DAMAGED = {
    "cut.csv.gz": gzip.compress(GOOD.encode())[:-12],
    "short.csv.gz": gzip.compress(GOOD.encode())[:60],
    "bits.csv.gz": gzip.compress(GOOD.encode())[:12] + bytes(range(60)),
    "sum.csv.gz": gzip.compress(GOOD.encode())[:-8] + b"abcdefgh",
    "empty.csv.gz": b"",
    "binary.csv": bytes(range(256)) * 20,
    "line.csv": b"x" * 1_000_000,
    "commas.csv": b"," * 100_000,
    "cell.csv": b"Date,AAA,BBB\n2024-01-02," + b"1" * 300_000 + b",2\n",
    "zero.csv": WIDE.replace("1", "\0").encode(),
    "utf16.csv": WIDE.encode("utf-16"),
    "latin.csv": WIDE.replace("AAA", "\xc4").encode("latin1"),
    "quote.csv": WIDE.replace("2024", '"2024', 1).encode(),
    "quoted header.csv": b'"' + WIDE.encode(),
    "torn.csv": b'Symbol,Date,Close\n"AAA,2024-01-02,1\nAAA,2024-01-03,2\n"BBB,2024-01-02,1\n',
    "names.csv": b"Date,,\n2024-01-02,1.5,2\n",
    "twice.csv": b"Date,A,A\n2024-01-02,1,2\n",
    "comma.csv": b"Date,AAA,BBB\n2024-01-02,1,5,2,5\n2024-01-03,1,5,2,5\n",
    "semicolon.csv": b"Date;AAA;BBB\n2024-01-02;1,5;2,5\n",
    "quoted comma.csv": b'Date,AAA,BBB\n2024-01-02,"1,5","2,5"\n',
    "thousands.csv": b'Date,AAA,BBB\n2024-01-02,"1,234.5","2,111.5"\n',
    "header.csv": b"Date,AAA,BBB\n",
    "no line end.csv": b"Date,AAA,BBB",
    "blank.csv": b"\n\n\n",
    "page.csv": b"<html>\n<body>\n</html>",
    "huge.csv": b"Date,AAA,BBB\n2024-01-02,1e999,2\n",
    "day.csv": b"Date,AAA,BBB\n99999999999999999999999,1,2\n",
    "start.parquet": b"PAR1",
    "empty.parquet": b"",
    "text.parquet": WIDE.encode(),
    "foot.parquet": b"PAR1" + bytes(range(200)) + b"\x10\0\0\0PAR1",
}


class TestDamaged:
    @pytest.mark.filterwarnings("ignore::hiermt.data.DataWarning")
    @pytest.mark.parametrize("read", [read_prices, read_features, read_sectors])
    @pytest.mark.parametrize("name", DAMAGED)
    def test_one_sentence(self, name, read, tmp_path):
        (tmp_path / name).write_bytes(DAMAGED[name])
        with pytest.raises(DataError) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
        assert len(str(caught.value)) < 400

    def test_a_parquet_file_cut_anywhere(self, tmp_path):
        download().to_parquet(tmp_path / "t.parquet")
        whole = (tmp_path / "t.parquet").read_bytes()
        for cut in range(0, len(whole), len(whole) // 40):
            (tmp_path / "t.parquet").write_bytes(whole[:cut])
            with pytest.raises(DataError, match="not a readable Parquet"):
                read_prices(tmp_path / "t.parquet")

    @pytest.mark.parametrize("read", [read_prices, read_features, read_sectors, read_adjacency])
    def test_paths_that_are_not_files(self, read, tmp_path):
        with pytest.raises(DataError, match="is a folder"):
            read(tmp_path)
        with pytest.raises(DataError, match="not a regular file"):
            read(os.devnull)
        with pytest.raises(FileNotFoundError, match="no such file"):
            read(tmp_path / "none")

    def test_out_of_memory(self, tmp_path, monkeypatch):
        def full(*_, **__):
            raise MemoryError

        (tmp_path / "t.csv").write_text(WIDE)
        monkeypatch.setattr("hiermt.data.frames._parse", full)
        with pytest.raises(DataError, match="does not fit into memory"):
            read_prices(tmp_path / "t.csv")

    def test_carriage_returns_as_line_ends(self, tmp_path):
        (tmp_path / "t.csv").write_bytes(WIDE.replace("\n", "\r").encode())
        np.testing.assert_array_equal(quiet(tmp_path / "t.csv").close, [[1, 3], [2, 4]])
