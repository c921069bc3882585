"""The stocks among the columns of a wide table."""

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

# Fewer whole numbers in sequence may be prices.
_FEW = 8
_FIX = "remove what is not a stock, or name the stocks with symbols=[...]"


def stock_columns(table: Table, date_column: str, symbols: Sequence[str] | None) -> list[str]:
    """The columns of closing prices, each named after its stock.

    Fields (a close, a volume, an indicator, the level of an index) and days are refused, row numbers are dropped.
    Words that are also symbols, such as ``OPEN`` and ``LOW``, are stocks if in capitals beside other stocks, or if all
    names are in lower case.

    Args:
        table (Table): without a Symbol column.
        date_column (str): column of the days.
        symbols (sequence of str, optional): the stocks; other columns are not checked. (default: all columns)

    Raises:
        DataError: a stock is missing, the columns are fields of one stock, or a column is not certainly a stock.
    """
    columns = [column for column in table.columns if column != date_column]
    wanted = columns if symbols is None else [column for column in columns if column in symbols]
    alone = any(is_close(column) for column in columns if symbols is None or column not in symbols)
    if symbols is not None:
        # A stock listed by the caller may be called Open, but a volume is never a stock.
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
    # Among symbols, a few names of another form may be fields that are not in the lists. Some exchanges mix long and
    # short symbols (RELIANCE beside TCS), so that fewer of these are suspicious.
    odd = _few(wanted, is_in_capitals, 3) + _few(wanted, is_ticker, 5)
    for column in wanted:
        if is_seldom_symbol(column) or column in lower or column in odd:
            warn(f"{table.source}, column '{column}': is taken for a stock; remove it if it is something else")
    return wanted


def _few(columns: Sequence[str], usual: Callable[[str], bool], share: int) -> list[str]:
    """The columns not of the usual form, if they are one in `share` at most."""
    others = [column for column in columns if not usual(column)]
    return others if share * len(others) <= len(columns) else []


def check_spelling(names: Sequence[str], source: str) -> None:
    """Refuses two stocks whose names differ by case only.

    Raises:
        DataError: there is such a pair.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(f"{source}: '{other}' and '{name}' differ by case only; write each stock the same way")


def _in_lower_case(columns: Sequence[str]) -> list[str]:
    """Columns such as ``low`` and ``open`` that are symbols because all others are in lower case."""
    doubtful = [column for column in columns if may_be_lower_symbol(column)]
    others = [column for column in columns if column not in doubtful and not is_field(column)]
    return doubtful if len(others) > 1 and all(column == column.lower() for column in others) else []


def _check_contents(table: Table, date_column: str, columns: Sequence[str]) -> None:
    """Refuses columns whose names or values are days, or that repeat the name of another column.

    Raises:
        DataError: there is such a column.
    """
    dates = table.dates(date_column)
    counting, whole = [], 0
    for column in columns:
        if not np.isnat(parse_days([column], "")).all():
            raise DataError(
                f"{table.source}, column '{column}': has the name of a day, not of a stock; expected one row per day "
                "and one column per stock: transpose the table"
            )
        if column.endswith(".1") and column[:-2] in columns:
            reason = f"is the name pandas gives the second of two columns '{column[:-2]}'"
            raise DataError(f"{table.source}, column '{column}': {reason}; {_FIX}")
        values = table.numbers(column)
        what = date_number(values, dates)
        if what is not None:
            raise DataError(f"{table.source}, column '{column}': holds the {what} of the day, not prices; {_FIX}")
        if len(values) >= _FEW and _are_row_numbers(values):
            counting.append(column)
        whole += bool((np.isnan(values) | (values == np.floor(values))).all())
    # Beside other columns of whole numbers, they may be made-up prices.
    if counting and whole == 1:
        warn(f"{table.source}, column '{counting[0]}': counts the rows, but is taken for a stock; remove it if it does")


def _without_counters(table: Table, columns: list[str]) -> list[str]:
    """The columns without those of row numbers."""
    if columns and [clean(column) for column in columns] == [str(i) for i in range(len(columns))]:
        raise DataError(f"{table.source}: columns {some(columns)} have positions for names; name each after its stock")
    kept = []
    for column in columns:
        if not is_counter(column):
            kept.append(column)
        elif numbers_rows(table, column):
            warn(f"{table.source}, column '{column}': numbers the rows and is left out")
        elif may_be_symbol(column):
            kept.append(column)
        else:
            what = "has no name" if is_unnamed(column) else "does not name a stock"
            raise DataError(f"{table.source}, column '{column}': {what}; name it after its stock, or remove it")
    return kept


def numbers_rows(table: Table, column: str) -> bool:
    """Whether a column holds row numbers, from 0 or 1 and in any order."""
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
    """Whether columns that may be symbols, such as ``OPEN`` and ``LOW``, are fields of one stock."""
    names = {key(column): column for column in columns}
    if are_letters(columns) or {"open", "high", "low"} <= set(names):
        return bool(columns)
    if len(names) < 2 or not set(names) <= {"open", "high", "low"}:
        return False
    values = [table.numbers(names[name]) for name in ("low", "open", "high") if name in names]
    lower, upper = values[0], values[-1]
    known = ~(np.isnan(lower) | np.isnan(upper))
    # Prices of two stocks cross or lie far apart; those of a bar do neither.
    return bool(((lower <= upper) & (upper < 2 * lower))[known].all())
