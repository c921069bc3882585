"""A table of features, computed or read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiermt.data._errors import DataError, some, warn
from hiermt.data.column_names import DATE_NAMES, SYMBOL_NAMES, is_counter, is_unnamed
from hiermt.data.dates import DayArray
from hiermt.data.price_rows import adjusted_close, prices, rows_of
from hiermt.data.prices import symbol_names
from hiermt.data.stock_columns import numbers_rows
from hiermt.data.table import FloatArray, Table, first, read_table


@dataclass(frozen=True)
class FeatureTable:
    """Features of ``S`` stocks on ``D`` days, with the closing prices for labels and graphs.

    Attributes:
        values (Tensor): the features, finite where the stock is present.
        names (tuple of str): of the features, each once.
        symbols (tuple of str): of the stocks.
        dates (numpy.ndarray): the days.
        close (Tensor): closing prices, NaN where there is none.
        present (Tensor, optional): which stock has features on which day; elsewhere they are NaN. A stock may have a
            close there, as on the days that its first features look back on. (default: ``None``, all of them)

    Shapes:
        - **values:** ``[S, D, F]`` floating point
        - **dates:** ``[D]`` datetime64[D]
        - **close:** ``[S, D]`` float64, **present:** ``[S, D]`` bool

    Raises:
        DataError: the shapes do not agree, a name is repeated, or a value of a stock that is present is NaN or
            infinite in the dtype of `values`; the message names stock, day and feature.
    """

    values: Tensor
    names: tuple[str, ...]
    symbols: tuple[str, ...]
    dates: DayArray
    close: Tensor
    present: Tensor | None = None

    def __post_init__(self) -> None:
        expected = (len(self.symbols), len(self.dates), len(self.names))
        if tuple(self.values.shape) != expected:
            raise DataError(
                f"values: expected [stocks, days, features] = {list(expected)}, got {list(self.values.shape)}"
            )
        if self.close.shape != self.values.shape[:2]:
            raise DataError(f"close: expected [stocks, days] = {list(expected[:2])}, got {list(self.close.shape)}")
        again = [name for i, name in enumerate(self.names) if name in self.names[:i]]
        if again:
            raise DataError(f"names: '{again[0]}' is there twice; give each feature its own name")
        finite = torch.isfinite(self.values)
        if self.present is not None:
            check_present(self.present, self.values)
            finite = finite | ~self.present.unsqueeze(-1)
        if not bool(finite.all()):
            stock, day, feature = (~finite).nonzero()[0].tolist()
            raise DataError(
                f"feature {self.names[feature]} of {self.symbols[stock]} on {self.dates[day]} is "
                f"{float(self.values[stock, day, feature]):g} in {self.values.dtype}; correct the value, or use a "
                "wider dtype if it is finite in one"
            )

    @property
    def num_days(self) -> int:
        """``D``."""
        return len(self.dates)

    def select(self, names: Sequence[str]) -> FeatureTable:
        """The same table with the given features, in the given order.

        Raises:
            DataError: a feature is missing.
        """
        columns = _positions("feature", names, self.names)
        return replace(self, values=self.values[..., columns].contiguous(), names=tuple(names))

    def select_symbols(self, symbols: Sequence[str]) -> FeatureTable:
        """The same table with the given stocks, in the given order.

        Raises:
            DataError: a stock is missing.
        """
        rows = _positions("stock", symbols, self.symbols)
        present = None if self.present is None else self.present[rows]
        return replace(self, values=self.values[rows], symbols=tuple(symbols), close=self.close[rows], present=present)


def check_present(present: Tensor, values: Tensor) -> None:
    """Raises DataError unless `present` is bool ``[S, D]`` beside `values` ``[S, D, F]``."""
    if not isinstance(present, Tensor) or present.dtype != torch.bool or present.shape != values.shape[:2]:
        got = f"{present.dtype} {list(present.shape)}" if isinstance(present, Tensor) else type(present).__name__
        raise DataError(f"present: expected bool [stocks, days] = {list(values.shape[:2])}, got {got}")
    if present.device != values.device:
        raise DataError(f"present is on {present.device}, the features on {values.device}; move one with .to(...)")


def _positions(kind: str, wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(f"no {kind} {some(missing, 16)}; the table has {some(names, 16)}")
    return [names.index(name) for name in wanted]


def read_features(
    source: Any,
    *,
    dtype: torch.dtype = torch.float32,
    symbols: Sequence[str] | None = None,
    missing: str = "refuse",
) -> FeatureTable:
    """Reads ready features in the published long form.

    The table has the columns ``Symbol``, ``Date`` and ``Close``; every other column is a feature, in the order of the
    table. A column of row numbers is left out with a warning. An adjusted close replaces ``Close``, with a warning, and
    is not a feature: a split must not look like a return. Each stock needs a row for each day, unless
    ``missing="keep"``: a stock is then absent on days without a row, and where a cell of its row is empty. The stocks
    keep the order in which they first appear, which is the order of the rows of an adjacency file.

    Args:
        source (str, Path or pandas.DataFrame): CSV (also gzipped), Parquet, or a DataFrame.
        dtype (torch.dtype): of the features. (default: ``torch.float32``)
        symbols (sequence of str, optional): read these stocks only, in this order; faults of other rows are ignored.
            (default: all)
        missing (str): ``"refuse"`` empty cells and missing rows, or ``"keep"`` them. (default: ``"refuse"``)

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: a column is missing or has no name, a cell is empty or not a number, a stock lacks a day, or a
            feature is not finite in `dtype`.
        TypeError: `dtype` is not a floating point dtype, or `symbols` not a sequence of strings.
        ValueError: `missing` is something else.
        ImportError: pandas is not installed.
    """
    check_floating(dtype)
    if missing not in ("refuse", "keep"):
        raise ValueError(f"missing: expected 'refuse' or 'keep', got {missing!r}")
    keep = missing == "keep"
    wanted = None if symbols is None else symbol_names(symbols)
    table = read_table(source)
    symbol, date, close = table.find(SYMBOL_NAMES), table.find(DATE_NAMES), _closes(table)
    if symbol is None or date is None or close is None:
        found = {"Symbol": symbol, "Date": date, "Close": close}
        absent = " and no ".join(name for name, column in found.items() if column is None)
        raise DataError(f"{table.source}: no {absent} column; expected Symbol, Date, Close and features")
    keys = {symbol, date, close, table.find(("close",))}
    # Before rows are selected: row numbers are recognised as long as they have no gaps.
    names = [name for name in table.columns if name not in keys and not _is_row_number(table, name)]
    if not names:
        raise DataError(f"{table.source}: no feature beside Symbol, Date and Close; add one column per feature")
    table, order, stock = rows_of(table, symbol, wanted)
    columns = [table.numbers(name) if keep else _complete(table, name) for name in names]
    prices(table, close, "use prices that are not scaled")
    closes = table.numbers(close) if keep else _complete(table, close)
    days, day = np.unique(table.dates(date), return_inverse=True)
    key = stock * len(days) + day
    counts = np.bincount(key, minlength=len(order) * len(days))
    off = counts > 1 if keep else counts != 1
    if off.any():
        wrong = int(off.argmax())
        way_out = "" if counts[wrong] else "; add the row, or keep the gap with missing='keep'"
        raise DataError(
            f"{table.source}: {order[wrong // len(days)]} has {counts[wrong]} rows for {days[wrong % len(days)]}; "
            f"expected {'at most' if keep else 'exactly'} one per stock and day{way_out}"
        )
    shape = (len(order), len(days))
    cells, by_day = np.full((counts.size, len(columns)), np.nan), np.full(counts.size, np.nan)
    cells[key], by_day[key] = np.stack(columns, axis=-1), closes
    there = ~np.isnan(cells).any(axis=1) & ~np.isnan(by_day)
    cells[~there] = np.nan
    for name, any_day in zip(order, there.reshape(shape).any(axis=1), strict=True):
        if not any_day:
            raise DataError(f"{table.source}: {name} has no complete row; remove the stock or fill in its features")
    return FeatureTable(
        torch.from_numpy(cells.reshape(*shape, -1)).to(dtype),
        tuple(names),
        order,
        days,
        torch.from_numpy(by_day.reshape(shape)),
        None if there.all() else torch.from_numpy(there.reshape(shape)),
    )


def _closes(table: Table) -> str | None:
    """The column of closing prices: the adjusted close if there is one."""
    adjusted, close = adjusted_close(table), table.find(("close",))
    if adjusted is not None and close is not None:
        warn(f"{table.source}: '{adjusted}' is used in place of '{close}', and is not a feature")
    return close if adjusted is None else adjusted


def _complete(table: Table, name: str) -> FloatArray:
    column = table.numbers(name)
    if (row := first(np.isnan(column))) is not None:
        reason = (
            "the cell is empty; fill it in, drop the day for all stocks, or read with missing='keep', where the stock "
            "is absent on that day"
        )
        raise table.error(row, name, reason)
    return column


def _is_row_number(table: Table, name: str) -> bool:
    """Whether a column holds row numbers, which would tell a model the day."""
    if is_counter(name) and numbers_rows(table, name):
        warn(f"{table.source}: column '{name}' numbers the rows, so it is left out; write the table without its index")
        return True
    if is_unnamed(name):
        raise DataError(f"{table.source}: column '{name}' has no name; name the feature, or remove the column")
    return False


def check_floating(dtype: object) -> None:
    """Raises TypeError unless `dtype` is a floating point dtype of torch."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating point torch.dtype such as torch.float32, got {dtype!r}")
