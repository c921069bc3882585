"""Which columns of a table without a Symbol column are stocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hiermt.data._errors import DataError, some, warn
from hiermt.data.column_names import (
    are_letters,
    clean,
    field_of,
    is_certain_field,
    is_close,
    is_counter,
    is_field,
    is_in_capitals,
    is_seldom_symbol,
    is_ticker,
    is_unnamed,
    key,
    may_be_lower_symbol,
    may_be_symbol,
)
from hiermt.data.dates import date_number, parse_days
from hiermt.data.table import FloatArray, Table

# So few whole numbers in a row may well be prices.
_FEW = 8
_FIX = "remove what is not a stock, or name the stocks with symbols=[...]"


def stock_columns(table: Table, date_column: str, symbols: Sequence[str] | None) -> list[str]:
    """The columns of closing prices, each of which carries the name of a stock.

    A field (a close, a volume, an indicator, the level of an index) is never taken for a stock, nor are days or row
    numbers under another name. ``OPEN``, ``LOW`` and other words that are symbols as well are stocks where they stand
    in capitals beside others, or in lower case as all others do.

    Args:
        table (Table): without a Symbol column.
        date_column (str): its days.
        symbols (sequence of str, optional): the stocks that are wanted; other columns do not matter then.

    Raises:
        DataError: a wanted stock is not there, the table has the fields of one stock, or a column may be either.
    """
    columns = [column for column in table.columns if column != date_column]
    wanted = columns if symbols is None else [column for column in columns if column in symbols]
    alone = any(is_close(column) for column in columns if symbols is None or column not in symbols)
    if symbols is not None:
        # What is asked for by name may be called Open; a volume is no stock all the same.
        if len(wanted) == len(symbols) and not any(is_certain_field(column.upper()) for column in wanted):
            return list(symbols)
        missing = [symbol for symbol in symbols if symbol not in columns]
        if missing and not alone:
            raise DataError(f"{table.source}: no prices for {some(missing)}; it has {some(columns)}")
    if alone or (columns and all(is_field(column) for column in columns)) or _is_bar(table, columns):
        raise DataError(
            f"{table.source}: columns {some(columns)} but no Symbol column, so these are prices of one stock only; a "
            "graph needs two or more: put several stocks in one table, told apart by a Symbol column"
        )
    if symbols is None:
        wanted = _without_counters(table, columns)
    lower = _in_lower_case(wanted)
    fields = [column for column in wanted if is_field(column) and column not in lower]
    if fields:
        raise DataError(f"{table.source}, column '{fields[0]}': is a field, not a stock; {_FIX}")
    pairs = [pair for pair in map(field_of, wanted) if pair is not None]
    several = {symbol for symbol, _ in pairs if sum(other == symbol for other, _ in pairs) > 1}
    several |= {symbol for symbol, _ in pairs} & {key(column) for column in wanted}
    if several:
        raise DataError(
            f"{table.source}: columns {some(wanted)} hold several fields of a stock; give a Symbol column and one "
            "column per field, or the closes only"
        )
    _check_contents(table, date_column, wanted)
    # Beside symbols, a few names in another writing may be fields that no list knows. On some exchanges long names are
    # common (RELIANCE beside TCS), so that fewer of them are odd.
    odd = _few(wanted, is_in_capitals, 3) + _few(wanted, is_ticker, 5)
    for column in wanted:
        if is_seldom_symbol(column) or column in lower or column in odd:
            warn(f"{table.source}, column '{column}': is taken for a stock; remove it if it is something else")
    return wanted


def _few(columns: Sequence[str], usual: Callable[[str], bool], share: int) -> list[str]:
    """The columns that are not written in the usual way, if they are one in `share` at most."""
    others = [column for column in columns if not usual(column)]
    return others if share * len(others) <= len(columns) else []


def check_spelling(names: Sequence[str], source: str) -> None:
    """Refuses two stocks whose names differ by case only.

    Raises:
        DataError: there are two.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(f"{source}: '{other}' and '{name}' differ by case only; write each stock in one way")


def _in_lower_case(columns: Sequence[str]) -> list[str]:
    """Columns such as ``low`` and ``open`` that are symbols because all others are written in lower case."""
    doubtful = [column for column in columns if may_be_lower_symbol(column)]
    others = [column for column in columns if column not in doubtful and not is_field(column)]
    return doubtful if len(others) > 1 and all(column == column.lower() for column in others) else []


def _check_contents(table: Table, date_column: str, columns: Sequence[str]) -> None:
    """Refuses columns whose name or numbers are those of the days, or that repeat the name of another.

    Raises:
        DataError: there is one.
    """
    dates = table.dates(date_column)
    counting, whole = [], 0
    for column in columns:
        if not np.isnat(parse_days([column], "")).all():
            raise DataError(
                f"{table.source}, column '{column}': is called like a day, not like a stock; expected one row per day "
                "and one column per stock: transpose the table"
            )
        if column.endswith(".1") and column[:-2] in columns:
            raise DataError(
                f"{table.source}, column '{column}': is how pandas calls the second of two columns '{column[:-2]}'; "
                f"{_FIX}"
            )
        values = table.numbers(column)
        what = date_number(values, dates)
        if what is not None:
            raise DataError(f"{table.source}, column '{column}': holds the {what} of the day, not prices; {_FIX}")
        if len(values) >= _FEW and _are_row_numbers(values):
            counting.append(column)
        whole += bool((np.isnan(values) | (values == np.floor(values))).all())
    # Beside other whole numbers they may be prices that were made up.
    if counting and whole == 1:
        warn(f"{table.source}, column '{counting[0]}': counts the rows, but is taken for a stock; remove it if it does")


def _without_counters(table: Table, columns: list[str]) -> list[str]:
    """Drops columns that number the rows."""
    if columns and [clean(column) for column in columns] == [str(i) for i in range(len(columns))]:
        raise DataError(f"{table.source}: columns {some(columns)} have positions for names; name each after its stock")
    kept = []
    for column in columns:
        if not is_counter(column):
            kept.append(column)
        elif numbers_rows(table, column):
            warn(f"{table.source}, column '{column}': numbers the rows and is left aside")
        elif may_be_symbol(column):
            kept.append(column)
        else:
            what = "has no name" if is_unnamed(column) else "does not name a stock"
            raise DataError(f"{table.source}, column '{column}': {what}; name it after its stock, or remove it")
    return kept


def numbers_rows(table: Table, column: str) -> bool:
    """Whether a column holds whole numbers that are all different, as row numbers are in whatever order."""
    try:
        values = table.numbers(column)
    except DataError:
        return False
    return _are_row_numbers(values)


def _are_row_numbers(values: FloatArray) -> bool:
    if np.isnan(values).any() or (values != np.floor(values)).any():
        return False
    ordered = np.sort(values)
    return bool(ordered[0] in (0, 1) and (np.diff(ordered) == 1).all())


def _is_bar(table: Table, columns: list[str]) -> bool:
    """Whether columns that may be symbols, such as ``OPEN`` and ``LOW``, are the fields of one stock."""
    names = {key(column): column for column in columns}
    if are_letters(columns) or {"open", "high", "low"} <= set(names):
        return bool(columns)
    if len(names) < 2 or not set(names) <= {"open", "high", "low"}:
        return False
    values = [table.numbers(names[name]) for name in ("low", "open", "high") if name in names]
    lower, upper = values[0], values[-1]
    known = ~(np.isnan(lower) | np.isnan(upper))
    # Two stocks cross, or lie far apart; the fields of a bar do neither.
    return bool(((lower <= upper) & (upper < 2 * lower))[known].all())
