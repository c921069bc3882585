"""Daily prices of several stocks on one calendar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hiermt._arguments import check_integer
from hiermt.data._errors import DataError, some
from hiermt.data.calendar import one_calendar
from hiermt.data.column_names import clean
from hiermt.data.dates import DayArray
from hiermt.data.price_rows import read_rows, to_panels
from hiermt.data.table import FloatArray, read_table


@dataclass(frozen=True)
class Prices:
    """Prices of ``S`` stocks on the same ``D`` trading days.

    Attributes:
        symbols (tuple of str): the stocks, in order of appearance.
        dates (numpy.ndarray): the days, ascending.
        close (numpy.ndarray): closing prices.
        open, high, low (numpy.ndarray, optional): the other prices of a bar, all three or none.
        present (numpy.ndarray, optional): which stock has prices on which day; elsewhere they are NaN. ``None`` if
            every stock has them on every day.

    Shapes:
        - **dates:** ``[D]`` datetime64[D]
        - **present:** ``[S, D]`` bool
        - **open**, **high**, **low**, **close:** ``[S, D]`` float64, in the currency of the table
    """

    symbols: tuple[str, ...]
    dates: DayArray
    close: FloatArray
    open: FloatArray | None = None
    high: FloatArray | None = None
    low: FloatArray | None = None
    present: npt.NDArray[np.bool_] | None = None

    @property
    def has_bars(self) -> bool:
        """Whether there are open, high and low."""
        return self.open is not None


def read_prices(
    source: Any, *, max_gap: int = 5, symbols: Sequence[str] | None = None, missing: str = "fill"
) -> Prices:
    """Reads daily prices and aligns all stocks on one calendar.

    A table has one of two forms. Long: the columns ``Symbol`` (or ``Ticker``, ``Name``), ``Date``, ``Close`` and
    optionally ``Open, High, Low``. Wide: a ``Date`` column and one column of closing prices per stock, named after it.
    With an adjusted close, the whole bar is scaled to it. Volume is not read: no feature needs it.

    =================================================  ==============================================
    two levels of columns, (field, symbol) or          read as the long form, from a DataFrame, a
    (symbol, field), as from yfinance                  Parquet file or a CSV with its header lines
    ``Adj Close``, ``adjClose``, ``close_adj``,        an adjusted close; two of them are refused; without
    ``Adjusted`` ...                                   a ``Close`` the bar is taken from ``Adj Open`` ...
    a wide table with a field among its columns        refused: ``Close``, ``Volume``, ``VWAP``, ``SMA_20``,
                                                       levels of indices ...
    a wide table with the days in another column       refused, whatever the name: years, 20240131, seconds
    ``PE``, ``EBITDA``, ``DXY`` ..., and a few names   stocks, with a warning
    in another writing (``Buy``, ``REVENUE``,
    ``DGS10``) beside symbols in capitals
    ``OPEN, LOW, DAY ...`` beside other stocks         stocks if in capitals; with a warning if all names are
                                                       in lower case; else refused
    ``Open, High, Low``, or ``o h l c v``, wide        refused: the prices of one stock
    a column without a name, or called ``index`` ...   left out, with a warning, if it numbers the rows; the
                                                       date, if it comes first and holds days; else refused
    names that differ by blanks at their ends          one stock in the long form, refused in the wide one
    names that differ by case only                     refused
    2024-01-31, 20240131, with a time of day or not    read
    1/31/2024, 31.1.2024                               read if all cells together tell day and month apart
    months, years, quarters, serial numbers, seconds   refused, with line and column
    rows in any order, a byte order mark, blank lines  read
    the same row twice                                 one is dropped, with a warning
    two different rows for a stock and day             refused, with both lines
    an empty price                                     the row counts as missing
    a day without a price of any stock                 left out, with a warning
    up to `max_gap` missing days in a row              filled with the last close, with a warning; never from a
                                                       later day
    more missing days in a row                         refused, with the stock and the days
    histories of unequal length                        cut to the days all stocks share, with a warning
    text or infinity in a number, a price <= 0,        refused, with line and column
    a high below the low, an unreadable date
    a CSV row with more cells than the header          refused: a decimal comma would shift the prices
    fewer than two stocks                              refused: a graph needs neighbours
    =================================================  ==============================================

    Warnings are of the class :class:`hiermt.data.DataWarning`.

    With ``missing="keep"`` no history is cut, no gap filled and none refused. A stock that lists late, leaves, or was
    not traded on a day is absent there: its prices are NaN, and :attr:`Prices.present` says so to everything that
    follows. A row with an empty price is absent as a whole.

    Args:
        source (str, Path or pandas.DataFrame): CSV (also gzipped), Parquet, or a DataFrame.
        max_gap (int): most missing trading days in a row to fill; not used with ``missing="keep"``. (default: ``5``)
        symbols (sequence of str, optional): read these stocks only, in this order; faults of other columns and rows are
            ignored. In the wide form a column called ``Open`` or ``Target`` can be made a stock so, but not a close or
            a volume. (default: all)
        missing (str): ``"fill"`` as in the table above, or ``"keep"``. (default: ``"fill"``)

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the table cannot be used; the message names line, column and what to change.
        TypeError: `symbols` is not a sequence of strings, or `max_gap` not an integer.
        ValueError: `max_gap` is negative, or `missing` is something else.
        ImportError: pandas is not installed.
    """
    check_integer("max_gap", max_gap, 0)
    check_missing(missing)
    wanted = None if symbols is None else symbol_names(symbols)
    table = read_table(source)
    rows = read_rows(table, wanted)
    if len(rows.symbols) < 2:
        raise DataError(
            f"{table.source} has prices of one stock only ({some(rows.symbols)}); a graph needs two or more: put "
            "several stocks in one table, told apart by a Symbol column"
        )
    gap = None if missing == "keep" else int(max_gap)
    dates, panels = one_calendar(rows.symbols, *to_panels(rows), table.source, gap)
    there = ~np.isnan(panels["close"])
    return Prices(rows.symbols, dates, **panels, present=None if there.all() else there)


def check_missing(missing: str) -> None:
    """Raises ValueError unless `missing` says what to do with what is missing."""
    if missing not in ("fill", "keep"):
        raise ValueError(f"missing: expected 'fill' or 'keep', got {missing!r}")


def symbol_names(symbols: Sequence[str]) -> tuple[str, ...]:
    """The argument `symbols` as a tuple of clean names.

    Raises:
        TypeError: `symbols` is not a sequence of strings.
        DataError: a stock is repeated.
    """
    if isinstance(symbols, str) or not all(isinstance(symbol, str) for symbol in symbols):
        raise TypeError(f"symbols: expected a sequence of strings, got {symbols!r}")
    names = tuple(clean(symbol) for symbol in symbols)
    if len(set(names)) < len(names):
        raise DataError("symbols: a stock is repeated; name each once")
    return names
