"""Prices of a table in long or wide form, as one row per stock and day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hiermt.data._errors import DataError, some, warn
from hiermt.data.column_names import CLOSE_NAMES, DATE_NAMES, OHLC, SYMBOL_NAMES, is_adjusted, is_unnamed
from hiermt.data.dates import DayArray
from hiermt.data.stock_columns import check_spelling, stock_columns
from hiermt.data.table import FloatArray, Table, first


@dataclass(frozen=True)
class Rows:
    """One row per stock and day: codes, prices and the row of the table."""

    symbols: tuple[str, ...]
    symbol: npt.NDArray[np.intp]
    date: DayArray
    values: dict[str, FloatArray]
    row: npt.NDArray[np.intp]
    table: Table


def read_rows(table: Table, symbols: Sequence[str] | None) -> Rows:
    """The rows of the given stocks; the cells of others are not read.

    Raises:
        DataError: the table has neither form, or a cell of these stocks cannot be used.
    """
    date_column = _date_column(table)
    symbol_column = table.find(SYMBOL_NAMES)
    if symbol_column is None:
        return _read_wide(table, date_column, symbols)
    return _read_long(table, symbol_column, date_column, symbols)


def _date_column(table: Table) -> str:
    found = table.find(DATE_NAMES)
    if found is not None:
        return found
    # pandas writes an unnamed index as an unnamed first column; reset_index calls it 'index'.
    first = table.columns[0]
    if is_unnamed(first) or first == "index":
        try:
            table.dates(first)
        except DataError:
            pass
        else:
            return first
    raise DataError(f"{table.source}: no Date column among {some(table.columns)}; name the column with the days 'Date'")


def _read_long(table: Table, symbol_column: str, date_column: str, symbols: Sequence[str] | None) -> Rows:
    table, order, codes = rows_of(table, symbol_column, symbols)
    values = _bars(table)
    return Rows(order, codes, table.dates(date_column), values, np.arange(len(codes)), table)


def rows_of(
    table: Table, symbol_column: str, symbols: Sequence[str] | None
) -> tuple[Table, tuple[str, ...], npt.NDArray[np.intp]]:
    """The rows of the given stocks, the stocks in order, and the position among them of the stock of each row.

    Args:
        table (Table): in the long form.
        symbol_column (str): column of the stocks.
        symbols (sequence of str, optional): the stocks, in this order. (default: all, in order of appearance)

    Raises:
        DataError: a stock is missing, a symbol is empty, or two differ by case only.
    """
    named = table.symbols(symbol_column)
    order = {name: code for code, name in enumerate(dict.fromkeys(named.tolist()))}
    if symbols is not None:
        missing = [symbol for symbol in symbols if symbol not in order]
        if missing:
            raise DataError(f"{table.source}: no prices for {some(missing)}; it has {some(list(order))}")
        folded = {symbol.casefold() for symbol in symbols}
        check_spelling([name for name in order if name.casefold() in folded], table.source)
        order = {name: code for code, name in enumerate(symbols)}
        keep = np.fromiter((name in order for name in named), np.bool_, len(named))
        table, named = table.rows(keep), named[keep]
    check_spelling(list(order), table.source)
    return table, tuple(order), np.fromiter((order[name] for name in named), np.intp, len(named))


def _bars(table: Table) -> dict[str, FloatArray]:
    """Prices of each row, scaled to the adjusted close if there is one."""
    adjusted = adjusted_close(table)
    close = table.find(CLOSE_NAMES)
    if close is None and adjusted is None:
        raise DataError(f"{table.source}: no Close column among {some(table.columns)}; call the closing prices 'Close'")
    bar = {name: table.find((name,)) for name in OHLC[:3]}
    scale = adjusted if close is not None else None
    if close is None and adjusted is not None:
        # Raw prices are not comparable with an adjusted close.
        close, bar = adjusted, {name: table.find((f"adj {name}", f"adjusted {name}")) for name in OHLC[:3]}
        left = [column for column in (table.find((name,)) for name in OHLC[:3]) if column is not None]
        if left and not all(bar.values()):
            warn(
                f"{table.source}: {some(left)} cannot be scaled to '{close}' without a column Close, so only "
                f"'{close}' is read"
            )
            bar = {}
    columns = {"close": str(close)}
    found = {name: column for name, column in bar.items() if column is not None}
    if len(found) == len(OHLC) - 1:
        columns = {**found, **columns}
    elif found:
        absent = [name.capitalize() for name in bar if name not in found]
        warn(f"{table.source}: {some(absent)} missing, so only Close is read")
    values = {name: prices(table, column) for name, column in columns.items()}
    if scale is not None:
        values = _scaled(table, values, columns, scale)
    if "high" in values:
        high, low = values["high"], values["low"]
        if (row := first(high < low)) is not None:
            reason = f"{high[row]:g} is below the {low[row]:g} of '{columns['low']}'; correct the row"
            raise table.error(row, columns["high"], reason)
    return values


def adjusted_close(table: Table) -> str | None:
    """The column of adjusted closes, if there is one.

    Raises:
        DataError: there are several.
    """
    adjusted = [column for column in table.columns if is_adjusted(column)]
    if len(adjusted) > 1:
        raise DataError(
            f"{table.source}: '{adjusted[0]}' and '{adjusted[1]}' are both adjusted closes; keep the one to use"
        )
    return adjusted[0] if adjusted else None


def _scaled(
    table: Table, values: dict[str, FloatArray], columns: dict[str, str], adjusted: str
) -> dict[str, FloatArray]:
    with np.errstate(over="ignore", under="ignore"):
        factor = prices(table, adjusted) / values["close"]
        scaled = {name: array * factor for name, array in values.items()}
    for name, array in scaled.items():
        if (row := first(np.isinf(array) | (array == 0))) is not None:
            product = f"{values[name][row]:g} times the adjustment, {factor[row]:g}, is {array[row]:g}"
            raise table.error(row, columns[name], f"{product}; correct '{adjusted}' or '{columns['close']}'")
    return scaled


def _read_wide(table: Table, date_column: str, symbols: Sequence[str] | None) -> Rows:
    stocks = stock_columns(table, date_column, symbols)
    check_spelling(stocks, table.source)
    dates = table.dates(date_column)
    days = len(dates)
    values = [prices(table, column) for column in stocks]
    return Rows(
        tuple(stocks),
        np.repeat(np.arange(len(stocks)), days),
        np.tile(dates, len(stocks)),
        {"close": np.concatenate(values) if values else np.empty(0)},
        np.tile(np.arange(days), len(stocks)),
        table,
    )


def prices(table: Table, column: str, remedy: str = "leave the cell empty if there was no trade") -> FloatArray:
    """A column of prices, NaN where the cell is empty.

    Raises:
        DataError: a cell is not a number, or not above 0.
    """
    values = table.numbers(column)
    if (row := first(values <= 0)) is not None:
        raise table.error(row, column, f"the price is {values[row]:g}; prices must be above 0: correct it, or {remedy}")
    return values


def to_panels(rows: Rows) -> tuple[DayArray, dict[str, FloatArray]]:
    """One array ``[S, D]`` per price, NaN where a row is missing or incomplete.

    Raises:
        DataError: two rows of a stock and day differ.
    """
    table = rows.table
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
        warn(
            f"{table.source}: {again.size} row(s) are repeated, first {table.where(int(rows.row[second[0]]))}; one "
            "of each is used"
        )
    panels = {}
    for name, array in rows.values.items():
        panels[name] = np.full((len(rows.symbols), len(dates)), np.nan)
        panels[name][rows.symbol, day] = array
    missing = np.logical_or.reduce([np.isnan(panel) for panel in panels.values()])
    for panel in panels.values():
        panel[missing] = np.nan
    return dates, panels
