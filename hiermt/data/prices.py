"""Daily prices of several stocks on one calendar."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hiermt.data._errors import DataError, DataWarning
from hiermt.data.table import DATE_NAMES, SYMBOL_NAMES, Table, read_table

FloatArray = npt.NDArray[np.float64]
DayArray = npt.NDArray[np.datetime64]
OHLC = ("open", "high", "low", "close")
_ADJUSTED_NAMES = ("adj close", "adjclose", "adjusted close")


@dataclass(frozen=True)
class Prices:
    """Prices of ``S`` stocks on the same ``D`` trading days, without gaps.

    Attributes:
        symbols (tuple of str): the stocks, in the order in which the table first names them.
        dates (numpy.ndarray): the days, ascending.
        close (numpy.ndarray): closing prices.
        open, high, low (numpy.ndarray, optional): the other prices of a bar; all three or none.

    Shapes:
        - **dates:** ``[D]`` datetime64[D]
        - **open**, **high**, **low**, **close:** ``[S, D]`` float64, in the currency of the table
    """

    symbols: tuple[str, ...]
    dates: DayArray
    close: FloatArray
    open: FloatArray | None = None
    high: FloatArray | None = None
    low: FloatArray | None = None

    @property
    def has_bars(self) -> bool:
        """Whether open, high and low are there too."""
        return self.open is not None


def read_prices(source: Any, *, max_gap: int = 5, symbols: Sequence[str] | None = None) -> Prices:
    """Reads daily prices and brings all stocks onto one calendar.

    Two forms are understood. Long: a ``Symbol`` (or ``Ticker``, ``Name``) and a ``Date`` column, with ``Close`` and, if
    they are there, ``Open, High, Low``. Wide: a ``Date`` column and one column of closing prices per stock. Where an
    adjusted close is given, the whole bar is scaled to it. Volume is not read: no feature needs it.

    =================================================  ==============================================
    rows in any order, a byte order mark, blank lines  read
    the same row twice                                 one is dropped, with a warning
    two different rows for a stock and day             refused, with both lines
    an empty price                                     the row counts as missing
    up to `max_gap` missing days in a row              the last close is carried on, with a warning
    more missing days in a row                         refused, with the stock and the days
    histories of unequal length                        cut to the days all stocks share, with a warning
    text or infinity in a number, a price <= 0,        refused, with line and column
    a high below the low, an unreadable date
    fewer than two stocks                              refused: a graph needs neighbours
    =================================================  ==============================================

    Args:
        source (str, Path or pandas.DataFrame): CSV (also gzipped), Parquet, or a DataFrame.
        max_gap (int): most missing trading days in a row that are bridged. (default: ``5``)
        symbols (sequence of str, optional): read these stocks only, in this order. (default: all)

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the table cannot be used; the message names line, column and what to change.
        ImportError: pandas is not installed.
    """
    table = read_table(source)
    date_column = table.find(DATE_NAMES)
    if date_column is None:
        raise DataError(
            f"{table.source}: no Date column among {_some(table.columns)}; name the column with the days 'Date'"
        )
    symbol_column = table.find(SYMBOL_NAMES)
    rows = _read_wide(table, date_column) if symbol_column is None else _read_long(table, symbol_column, date_column)
    if symbols is not None:
        rows = rows.select(symbols, table.source)
    if len(rows.symbols) < 2:
        raise DataError(
            f"{table.source} has prices of one stock only ({_some(rows.symbols)}); a graph needs two or more: put "
            "several stocks in one table, told apart by a Symbol column"
        )
    dates, panels = _panel(rows, table)
    return _repair(rows.symbols, dates, panels, table.source, max_gap)


@dataclass(frozen=True)
class _Rows:
    """One row per stock and day: its codes, its prices and the row of the table it came from."""

    symbols: tuple[str, ...]
    symbol: npt.NDArray[np.intp]
    date: DayArray
    values: dict[str, FloatArray]
    columns: dict[str, Any]
    row: npt.NDArray[np.intp]

    def select(self, symbols: Sequence[str], source: str) -> _Rows:
        missing = [symbol for symbol in symbols if symbol not in self.symbols]
        if missing:
            raise DataError(f"{source}: no prices for {_some(missing)}; it has {_some(self.symbols)}")
        if len(set(symbols)) < len(symbols):
            raise DataError("symbols: a stock is asked for twice; name each once")
        code = np.full(len(self.symbols), -1, dtype=np.intp)
        code[[self.symbols.index(symbol) for symbol in symbols]] = np.arange(len(symbols))
        keep = code[self.symbol] >= 0
        return _Rows(
            tuple(symbols),
            code[self.symbol][keep],
            self.date[keep],
            {name: values[keep] for name, values in self.values.items()},
            self.columns,
            self.row[keep],
        )


def _read_long(table: Table, symbol_column: str, date_column: str) -> _Rows:
    named = table.symbols(symbol_column)
    close_column = table.find(("close",))
    adjusted_column = table.find(_ADJUSTED_NAMES)
    if close_column is None:
        close_column, adjusted_column = adjusted_column, None
    if close_column is None:
        raise DataError(f"{table.source}: no Close column among {_some(table.columns)}; name the closing prices so")
    found = {name: table.find((name,)) for name in OHLC[:3]}
    columns: dict[str, Any] = {"close": close_column}
    if all(found.values()):
        columns = {**found, "close": close_column}
    elif any(found.values()):
        absent = [name.capitalize() for name, column in found.items() if column is None]
        warnings.warn(
            f"{table.source}: {_some(absent)} missing, so only Close is read",
            DataWarning,
            stacklevel=4,
        )
    values = {name: table.numbers(column) for name, column in columns.items()}
    for name, array in values.items():
        _check_positive(table, columns[name], array)
    if adjusted_column is not None:
        adjusted = table.numbers(adjusted_column)
        _check_positive(table, adjusted_column, adjusted)
        factor = adjusted / values["close"]
        values = {name: array * factor for name, array in values.items()}
    if "high" in values:
        crossed = values["high"] < values["low"]
        if crossed.any():
            row = int(crossed.argmax())
            raise DataError(
                f"{table.where(row)}: {columns['high']} {values['high'][row]:g} is below {columns['low']} "
                f"{values['low'][row]:g}; correct the row"
            )
    dates = table.dates(date_column)
    order: dict[str, int] = {}
    codes = np.fromiter((order.setdefault(name, len(order)) for name in named), np.intp, len(named))
    return _Rows(tuple(order), codes, dates, values, columns, np.arange(len(named)))


def _read_wide(table: Table, date_column: str) -> _Rows:
    stocks = [column for column in table.columns if column != date_column]
    if stocks and {name.strip().lower().replace("_", " ") for name in stocks} <= {*OHLC, "volume", *_ADJUSTED_NAMES}:
        raise DataError(
            f"{table.source}: columns {_some(stocks)} but no Symbol column, so these are prices of one stock only; a "
            "graph needs two or more: put several stocks in one table, told apart by a Symbol column"
        )
    dates = table.dates(date_column)
    values = []
    for column in stocks:
        array = table.numbers(column)
        _check_positive(table, column, array)
        values.append(array)
    days = len(dates)
    return _Rows(
        tuple(name.strip() for name in stocks),
        np.repeat(np.arange(len(stocks)), days),
        np.tile(dates, len(stocks)),
        {"close": np.concatenate(values) if values else np.empty(0)},
        {"close": "Close"},
        np.tile(np.arange(days), len(stocks)),
    )


def _check_positive(table: Table, column: str, values: FloatArray) -> None:
    bad = values <= 0
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"{table.where(row)}, column '{column}': the price is {values[row]:g}; prices must be above 0: correct it, "
            "or leave the cell empty if there was no trade"
        )


def _panel(rows: _Rows, table: Table) -> tuple[DayArray, dict[str, FloatArray]]:
    """One array ``[S, D]`` per price, NaN where a stock has no complete row."""
    dates, day = np.unique(rows.date, return_inverse=True)
    key = rows.symbol * len(dates) + day
    order = np.argsort(key, kind="stable")
    again = np.flatnonzero(key[order][1:] == key[order][:-1])
    if again.size:
        first, second = order[again], order[again + 1]
        same = np.ones(again.size, dtype=bool)
        for array in rows.values.values():
            same &= (array[first] == array[second]) | (np.isnan(array[first]) & np.isnan(array[second]))
        if not same.all():
            i = int((~same).argmax())
            raise DataError(
                f"{table.where(int(rows.row[second[i]]))}: {rows.symbols[rows.symbol[second[i]]]} on "
                f"{rows.date[second[i]]} is already in {table.where(int(rows.row[first[i]]))} with other prices; "
                "remove one of the two"
            )
        warnings.warn(
            f"{table.source}: {again.size} row(s) are there twice, first {table.where(int(rows.row[second[0]]))}; one "
            "of each is used",
            DataWarning,
            stacklevel=3,
        )
    panels = {}
    for name, array in rows.values.items():
        panels[name] = np.full((len(rows.symbols), len(dates)), np.nan)
        panels[name][rows.symbol, day] = array
    missing = np.logical_or.reduce([np.isnan(panel) for panel in panels.values()])
    for panel in panels.values():
        panel[missing] = np.nan
    return dates, panels


def _repair(
    symbols: tuple[str, ...], dates: DayArray, panels: dict[str, FloatArray], source: str, max_gap: int
) -> Prices:
    """Cuts to the days all stocks share and carries closes over short gaps."""
    there = ~np.isnan(panels["close"])
    for symbol, days in zip(symbols, there, strict=True):
        if not days.any():
            raise DataError(f"{source}: {symbol} has no complete row; remove the stock or fill in its prices")
    first = there.argmax(axis=1)
    last = len(dates) - 1 - there[:, ::-1].argmax(axis=1)
    start, stop = int(first.max()), int(last.min()) + 1
    latest, earliest = symbols[int(first.argmax())], symbols[int(last.argmin())]
    if start >= stop:
        raise DataError(
            f"{source}: no day is shared by all stocks: {latest} starts on {dates[start]}, {earliest} ends on "
            f"{dates[stop - 1]}; remove one of them"
        )
    if start > 0 or stop < len(dates):
        reasons = []
        if start > 0:
            reasons.append(f"{latest} starts on {dates[start]}")
        if stop < len(dates):
            reasons.append(f"{earliest} ends on {dates[stop - 1]}")
        warnings.warn(
            f"{source}: histories are unequal ({', '.join(reasons)}); cut to the {stop - start} of {len(dates)} days "
            "that all stocks share",
            DataWarning,
            stacklevel=3,
        )
    dates = dates[start:stop]
    panels = {name: panel[:, start:stop] for name, panel in panels.items()}
    missing = np.isnan(panels["close"])
    if missing.any():
        panels = _carry(symbols, dates, panels, missing, source, max_gap)
    return Prices(symbols, dates, **{name: np.ascontiguousarray(panel) for name, panel in panels.items()})


def _carry(
    symbols: tuple[str, ...],
    dates: DayArray,
    panels: dict[str, FloatArray],
    missing: npt.NDArray[np.bool_],
    source: str,
    max_gap: int,
) -> dict[str, FloatArray]:
    day = np.arange(len(dates))
    last_seen = np.maximum.accumulate(np.where(missing, -1, day), axis=1)
    gap = day - last_seen
    if gap.max() > max_gap:
        late, end = divmod(int(gap.argmax()), gap.shape[1])
        raise DataError(
            f"{source}: {symbols[late]} has no prices from {dates[last_seen[late, end] + 1]} to {dates[end]}, "
            f"{gap[late, end]} trading days on which other stocks have; at most {max_gap} are bridged: fill them in, "
            "remove the stock, or raise max_gap"
        )
    stock, hole = np.argwhere(missing)[0]
    warnings.warn(
        f"{source}: {int(missing.sum())} missing row(s), first {symbols[stock]} on {dates[hole]}; the "
        "last close is carried on",
        DataWarning,
        stacklevel=4,
    )
    carried = np.take_along_axis(panels["close"], last_seen, axis=1)
    return {name: np.where(missing, carried, panel) for name, panel in panels.items()}


def _some(names: Sequence[str]) -> str:
    """A few names of many, for a message."""
    shown = ", ".join(str(name) for name in names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
