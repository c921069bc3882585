"""A table of features, how it is read, and how it is scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiermt.data._errors import DataError
from hiermt.data.prices import DayArray
from hiermt.data.table import DATE_NAMES, SYMBOL_NAMES, read_table


@dataclass(frozen=True)
class FeatureTable:
    """Features of ``S`` stocks on ``D`` days, with the closes that labels and graphs are made of.

    Attributes:
        values (Tensor): the features, finite.
        names (tuple of str): what the last dimension holds, each name once.
        symbols (tuple of str): what the first dimension holds.
        dates (numpy.ndarray): what the second dimension holds.
        close (Tensor): closing prices.

    Shapes:
        - **values:** ``[S, D, F]`` floating point
        - **dates:** ``[D]`` datetime64[D]
        - **close:** ``[S, D]`` float64

    Raises:
        DataError: the shapes do not agree, a name is there twice, or a value is NaN or infinite in the dtype of
            `values`; the message names stock, day and feature.
    """

    values: Tensor
    names: tuple[str, ...]
    symbols: tuple[str, ...]
    dates: DayArray
    close: Tensor

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
            raise DataError(f"names: '{again[0]}' is there twice; give each feature a name of its own")
        finite = torch.isfinite(self.values)
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
        """The same table with some features, in the order asked for.

        Raises:
            DataError: a feature is not there.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise DataError(f"no feature {', '.join(missing)}; there are {', '.join(self.names)}")
        columns = [self.names.index(name) for name in names]
        return replace(self, values=self.values[..., columns].contiguous(), names=tuple(names))

    def select_symbols(self, symbols: Sequence[str]) -> FeatureTable:
        """The same table with some stocks, in the order asked for.

        Raises:
            DataError: a stock is not there.
        """
        missing = [symbol for symbol in symbols if symbol not in self.symbols]
        if missing:
            raise DataError(f"no rows for {', '.join(missing[:6])}; the table has {', '.join(self.symbols[:6])} ...")
        rows = [self.symbols.index(symbol) for symbol in symbols]
        return replace(self, values=self.values[rows], symbols=tuple(symbols), close=self.close[rows])


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each feature; apply it to make features comparable in size.

    Shapes:
        - **mean**, **deviation:** ``[F]`` float64
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, values: Tensor) -> Scale:
        """Measures ``[S, D, F]`` values; give it the training days only, or it looks ahead."""
        if values.dim() != 3 or not values.size(0) * values.size(1):
            raise DataError(f"values: expected [stocks, days, features] with one row or more, got {list(values.shape)}")
        flat = values.double().reshape(-1, values.size(-1))
        deviation = flat.std(dim=0, correction=0)
        # A constant feature carries nothing; 1 leaves it at zero.
        return cls(flat.mean(dim=0), torch.where(deviation > 0, deviation, 1.0))

    def apply(self, values: Tensor) -> Tensor:
        """``(values - mean) / deviation`` in the dtype of `values`."""
        mean, deviation = self.mean.to(values.device), self.deviation.to(values.device)
        return ((values.double() - mean) / deviation).to(values.dtype)


def read_features(source: Any, *, dtype: torch.dtype = torch.float32) -> FeatureTable:
    """Reads ready features in the published long form.

    Expected are a ``Symbol``, a ``Date`` and a ``Close`` column; every other column is a feature, in the order of
    the table. Each stock needs a row for each day. The stocks keep the order in which the table first names them,
    which is the order of the rows of an adjacency file.

    Args:
        source (str, Path or pandas.DataFrame): CSV (also gzipped), Parquet, or a DataFrame.
        dtype (torch.dtype): of the features. (default: ``torch.float32``)

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a column is missing, a cell is empty or not a number, a stock lacks a day, or a feature is not finite
            in `dtype`.
        TypeError: `dtype` is not a floating point dtype.
        ImportError: pandas is not installed.
    """
    check_floating(dtype)
    table = read_table(source)
    keys = {"Symbol": table.find(SYMBOL_NAMES), "Date": table.find(DATE_NAMES), "Close": table.find(("close",))}
    absent = [name for name, column in keys.items() if column is None]
    if absent:
        raise DataError(
            f"{table.source}: no {' and no '.join(absent)} column; expected Symbol, Date, Close and features"
        )
    names = [column for column in table.columns if column not in keys.values()]
    if not names:
        raise DataError(f"{table.source}: no feature beside Symbol, Date and Close; add one column per feature")
    columns = {name: table.numbers(name) for name in [*names, str(keys["Close"])]}
    for name, column in columns.items():
        empty = np.isnan(column)
        if empty.any():
            raise DataError(
                f"{table.where(int(empty.argmax()))}, column '{name}': the cell is empty; a ready feature table "
                "must be complete: fill it in or drop the day for all stocks"
            )
    named, dates = table.symbols(str(keys["Symbol"])), table.dates(str(keys["Date"]))
    order: dict[str, int] = {}
    stock = np.fromiter((order.setdefault(name, len(order)) for name in named), np.intp, len(named))
    days, day = np.unique(dates, return_inverse=True)
    key = stock * len(days) + day
    counts = np.bincount(key, minlength=len(order) * len(days))
    if (counts != 1).any():
        wrong = int((counts != 1).argmax())
        raise DataError(
            f"{table.source}: {list(order)[wrong // len(days)]} has {counts[wrong]} rows for "
            f"{days[wrong % len(days)]}; expected exactly one per stock and day"
        )
    cells = np.stack([columns[name] for name in names], axis=-1)[np.argsort(key)]
    close = columns[str(keys["Close"])][np.argsort(key)]
    shape = (len(order), len(days))
    return FeatureTable(
        torch.from_numpy(cells.reshape(*shape, -1)).to(dtype),
        tuple(names),
        tuple(order),
        days,
        torch.from_numpy(close.reshape(shape)),
    )


def check_floating(dtype: object) -> None:
    """Raises TypeError unless `dtype` is a floating point dtype of torch."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating point torch.dtype such as torch.float32, got {dtype!r}")
