"""Reads a CSV or Parquet file or a DataFrame into a table that knows the line of each row."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hiermt.data._errors import DataError
from hiermt.data.column_names import clean, is_unnamed, key
from hiermt.data.dates import DayArray, looks_like, parse_days
from hiermt.data.frames import flatten_columns, from_csv, from_parquet
from hiermt.data.optional import import_optional

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """A table whose error messages name the line of a cell.

    Attributes:
        frame (pandas.DataFrame): the cells; the index is the row number in the source.
        source (str): name of the table in messages.
        first_line (int): number of the first row: 2 in a CSV, whose line 1 is the header, 0 elsewhere.
    """

    frame: Any
    source: str
    first_line: int

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.frame.columns)

    def find(self, names: tuple[str, ...]) -> str | None:
        """The column with the first of `names` that occurs, in any case and with any separators.

        Raises:
            DataError: two columns have that name.
        """
        for name in names:
            found = [column for column in self.columns if key(column) == key(name)]
            if len(found) > 1:
                raise DataError(
                    f"{self.source}: columns '{found[0]}' and '{found[1]}' have the same name; rename or remove one"
                )
            if found:
                return found[0]
        return None

    def rows(self, keep: npt.NDArray[np.bool_]) -> Table:
        """The same table with the given rows, which keep their numbers."""
        return replace(self, frame=self.frame[keep])

    def where(self, row: int) -> str:
        """The place of a row: ``prices.csv line 17`` or ``DataFrame row 15``."""
        word = "line" if self.first_line else "row"
        return f"{self.source} {word} {int(self.frame.index[row]) + self.first_line}"

    def error(self, row: int, column: str, reason: str) -> DataError:
        """The error of a cell, with its place."""
        return DataError(f"{self.where(row)}, column '{column}': {reason}")

    def numbers(self, column: str) -> FloatArray:
        """A column as float64, with NaN for empty cells.

        Raises:
            DataError: a cell holds text, a truth value, a point in time or an infinity.
        """
        pandas = import_optional("pandas", "reading tables")
        cells = self.frame[column]
        there = ~cells.isna().to_numpy(dtype=bool)
        if _holds_numbers(cells):
            values: FloatArray = pandas.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            values = np.array([_number(cell) for cell in cells], dtype=np.float64)
        if (row := first(np.isinf(values) | (np.isnan(values) & there))) is not None:
            form = "write numbers like 1234.5, without currency or thousands signs; leave the cell of a gap empty"
            raise self.error(row, column, f"{_shown(cells.iloc[row])!r} is not a number; {form}")
        return values

    def dates(self, column: str) -> DayArray:
        """A column as days, without time of day and time zone.

        Raises:
            DataError: a cell is empty or not a day, or all could be month/day as well as day/month.
        """
        pandas = import_optional("pandas", "reading tables")
        cells = self.frame[column]
        # Days of Arrow (date32) have no zone; they are parsed as text below.
        if str(cells.dtype).startswith(("datetime64", "timestamp")):
            local = cells if cells.dt.tz is None else cells.dt.tz_localize(None)
            days: DayArray = local.to_numpy(dtype="datetime64[us]", na_value=np.datetime64("NaT")).astype(
                "datetime64[D]"
            )
        else:
            # Each day is repeated once per stock, so only distinct cells are parsed.
            codes, distinct = pandas.factorize(cells)
            parsed = parse_days([str(cell) for cell in distinct], f"{self.source}, column '{column}'")
            days = np.append(parsed, np.datetime64("NaT", "D"))[codes]
        if (row := first(np.isnat(days))) is not None:
            cell = _shown(cells.iloc[row])
            raise self.error(row, column, f"{cell!r} is not a date{looks_like(cell)}; write dates like 2024-01-31")
        return days

    def symbols(self, column: str) -> npt.NDArray[np.object_]:
        """A column as clean strings.

        Raises:
            DataError: a cell is empty.
        """
        pandas = import_optional("pandas", "reading tables")
        cells = self.frame[column]
        codes, distinct = pandas.factorize(cells)
        names: npt.NDArray[np.object_] = np.array([*(_symbol(cell) for cell in distinct), ""], dtype=object)[codes]
        if (row := first(names == "")) is not None:
            raise self.error(row, column, "the symbol is empty; fill it in")
        torn = np.array([*(isinstance(cell, str) and "\n" in cell.strip() for cell in distinct), False])[codes]
        if (row := first(torn)) is not None:
            cell = _shown(cells.iloc[row])
            raise self.error(row, column, f"{cell!r} runs over several lines; close the quote that it opens")
        return names


def read_table(source: Any) -> Table:
    """Reads a table.

    Args:
        source (str, Path or pandas.DataFrame): a ``.csv`` (also ``.csv.gz``) or ``.parquet`` file, or a DataFrame.
            A CSV may start with a byte order mark, may separate by comma, semicolon, tab or bar, and may have the
            header of two levels that pandas writes. Its lines have at most 4 MiB and its text 2 GiB; gzipped, it is at
            most 200 times as large as the file, above 64 MiB. A Parquet file has at most 2^28 cells.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the source cannot be read, or is empty.
        TypeError: `source` is neither a path nor a DataFrame.
    """
    pandas = import_optional("pandas", "reading prices")
    if isinstance(source, pandas.DataFrame):
        table = Table(flatten_columns(source, "DataFrame"), "DataFrame", 0)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        check_file(path, "a CSV or Parquet file with prices")
        if path.suffix.lower() in (".parquet", ".pq"):
            table = Table(from_parquet(path), path.name, 0)
        else:
            table = Table(from_csv(path), path.name, 2)
    else:
        raise TypeError(f"source: expected a path or a pandas DataFrame, got {type(source).__name__}")
    if table.frame.empty:
        raise DataError(f"{table.source} holds no rows; expected prices")
    counts = Counter(column for column in table.columns if not is_unnamed(column))
    repeated = sorted(column for column, count in counts.items() if count > 1)
    if repeated:
        raise DataError(f"{table.source}: column '{repeated[0]}' is there twice; rename or remove one")
    return table


def check_file(path: Path, expected: str) -> None:
    """Refuses a path that is not a file.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the path is a folder or a device.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give {expected}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file; give {expected}")
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file; give {expected}")


def first(rows: npt.NDArray[np.bool_]) -> int | None:
    """The first of the rows that are true, if any is."""
    return int(rows.argmax()) if rows.any() else None


def _holds_numbers(cells: Any) -> bool:
    types = import_optional("pandas", "reading tables").api.types
    return bool(types.is_numeric_dtype(cells) and not types.is_bool_dtype(cells) and not types.is_complex_dtype(cells))


def _number(cell: Any) -> float:
    """One cell of a mixed column as a number; NaN if it is not one."""
    if isinstance(cell, str):
        # float() also accepts 1_000.
        cell = "" if "_" in cell else cell
    elif not hasattr(cell, "__float__") or isinstance(cell, (bool, np.bool_, np.datetime64, np.timedelta64)):
        return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")
    except OverflowError:
        return float("inf")


def _shown(cell: Any) -> str:
    """A cell for a message, cut to 60 characters."""
    text = str(cell)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _symbol(cell: Any) -> str:
    if isinstance(cell, (float, np.floating)) and float(cell).is_integer():
        # pandas reads integers as floats if a cell is empty.
        return str(int(cell))
    name = clean(cell)
    return "" if name == "<NA>" else name
