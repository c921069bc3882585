"""Reads CSV, Parquet or a DataFrame into one checked table that still knows the line of each row."""

from __future__ import annotations

import csv
import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from hiermt.data._errors import DataError, need

SYMBOL_NAMES = ("symbol", "ticker", "name")
DATE_NAMES = ("date", "datetime", "timestamp", "day")
_EMPTY_CELLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]
_DELIMITERS = ",;\t|"
_YEAR_FIRST = r"^(\d{4})[-/.]?(\d{1,2})[-/.]?(\d{1,2})(?:\.0|[T ].*)?$"


@dataclass(frozen=True)
class Table:
    """A table whose rows can be named in a message.

    Attributes:
        frame (pandas.DataFrame): the cells; its index numbers the rows as read.
        source (str): what to call the table in a message.
        first_line (int): number of the first row: 2 in a CSV, whose line 1 is the header, 0 elsewhere.
    """

    frame: Any
    source: str
    first_line: int

    @property
    def columns(self) -> list[str]:
        """Column names as they stand."""
        return list(self.frame.columns)

    def find(self, names: tuple[str, ...]) -> str | None:
        """The column that goes by one of `names`, whatever its case and separators."""
        by_name = {_plain(column): column for column in reversed(self.columns)}
        return next((by_name[name] for name in names if name in by_name), None)

    def where(self, row: int) -> str:
        """Where a row is: ``prices.csv line 17`` or ``DataFrame row 15``."""
        word = "line" if self.first_line else "row"
        return f"{self.source} {word} {int(self.frame.index[row]) + self.first_line}"

    def numbers(self, column: str) -> npt.NDArray[np.float64]:
        """A column as float64, with NaN for empty cells.

        Raises:
            DataError: a cell holds text or an infinity.
        """
        pandas = need("pandas", "reading tables")
        cells = self.frame[column]
        values: npt.NDArray[np.float64] = pandas.to_numeric(cells, errors="coerce").to_numpy(
            dtype=np.float64, na_value=np.nan
        )
        bad = np.isinf(values) | (np.isnan(values) & ~cells.isna().to_numpy())
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"{self.where(row)}, column '{column}': {str(cells.iloc[row])!r} is not a number; write numbers "
                "like 1234.5, without currency or thousands signs, and leave the cell empty where there is none"
            )
        return values

    def dates(self, column: str) -> npt.NDArray[np.datetime64]:
        """A column as days; what a cell says about time of day or zone is dropped.

        Raises:
            DataError: a cell is empty or not a date, or all could be month/day as well as day/month.
        """
        pandas = need("pandas", "reading tables")
        cells = self.frame[column]
        if pandas.api.types.is_datetime64_any_dtype(cells):
            parsed = cells if cells.dt.tz is None else cells.dt.tz_localize(None)
        else:
            # A table repeats each day once per stock, so only the distinct cells are parsed.
            codes, distinct = pandas.factorize(cells)
            days = self._parse_dates(pandas.Series(distinct).astype("string").str.strip(), column)
            parsed = days.reindex(codes)
        missing = parsed.isna().to_numpy()
        if missing.any():
            row = int(missing.argmax())
            raise DataError(
                f"{self.where(row)}, column '{column}': {str(cells.iloc[row])!r} is not a date; write dates like "
                "2024-01-31"
            )
        result: npt.NDArray[np.datetime64] = parsed.to_numpy().astype("datetime64[D]")
        return result

    def _parse_dates(self, text: Any, column: str) -> Any:
        pandas = need("pandas", "reading tables")
        parts = text.str.extract(_YEAR_FIRST)
        days = _to_days(parts[0] + "-" + parts[1] + "-" + parts[2], "%Y-%m-%d")
        if days.notna().any() or not len(text):
            return days
        text = text.str.replace(r"[-.]", "/", regex=True)
        month_first, day_first = _to_days(text, "%m/%d/%Y"), _to_days(text, "%d/%m/%Y")
        fits = [candidate for candidate in (month_first, day_first) if candidate.notna().all()]
        if len(fits) == 2 and not pandas.Series.equals(month_first, day_first):
            raise DataError(
                f"{self.source}, column '{column}': {str(text.iloc[0])!r} and all other dates could be month/day or "
                "day/month; write dates like 2024-01-31"
            )
        return fits[0] if fits else days

    def symbols(self, column: str) -> npt.NDArray[np.object_]:
        """A column as stripped strings.

        Raises:
            DataError: a cell is empty.
        """
        cells = self.frame[column].astype("string").str.strip()
        missing = (cells.isna() | (cells == "")).to_numpy(dtype=bool)
        if missing.any():
            raise DataError(f"{self.where(int(missing.argmax()))}, column '{column}': the symbol is empty; fill it in")
        names: npt.NDArray[np.object_] = cells.to_numpy(dtype=object)
        return names


def read_table(source: Any) -> Table:
    """Reads a table.

    Args:
        source (str, Path or pandas.DataFrame): a ``.csv`` (also ``.csv.gz``) or ``.parquet`` file, or a DataFrame.
            A CSV may start with a byte order mark and may separate by comma, semicolon, tab or bar.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it cannot be read, or is empty.
    """
    pandas = need("pandas", "reading prices")
    if isinstance(source, pandas.DataFrame):
        table = Table(_flat(source), "DataFrame", 0)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file; give a CSV or Parquet file with prices")
        table = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    else:
        raise TypeError(f"source: expected a path or a pandas DataFrame, got {type(source).__name__}")
    if table.frame.empty:
        raise DataError(f"{table.source} holds no rows; expected prices")
    repeated = sorted({column for column in table.columns if table.columns.count(column) > 1})
    if repeated:
        raise DataError(f"{table.source}: column '{repeated[0]}' is there twice; rename or remove one")
    return table


def _to_days(text: Any, form: str) -> Any:
    return need("pandas", "reading tables").to_datetime(text, errors="coerce", format=form)


def _plain(name: str) -> str:
    return str(name).strip().lower().replace("_", " ")


def _read_parquet(path: Path) -> Table:
    pandas = need("pandas", "reading prices")
    need("pyarrow", "reading Parquet")
    try:
        frame = pandas.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} is no readable Parquet file: {_first_line(error)}") from error
    return Table(_flat(frame), path.name, 0)


def _read_csv(path: Path) -> Table:
    pandas = need("pandas", "reading prices")
    try:
        # The header is read apart: pandas would rename a repeated column instead of reporting it.
        with _open(path) as file:
            line = file.readline().rstrip("\r\n")
        if not line.strip():
            raise DataError(f"{path.name}: line 1 is empty; expected a header with the names of the columns")
        delimiter = max(_DELIMITERS, key=line.count)
        columns = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
        symbols = [name for name in columns if _plain(name) in SYMBOL_NAMES]
        frame = pandas.read_csv(
            path,
            sep=delimiter,
            header=None,
            skiprows=1,
            names=columns if len(set(columns)) == len(columns) else range(len(columns)),
            index_col=False,
            dtype=dict.fromkeys(symbols, str),
            keep_default_na=False,
            # A stock may be called NA or NAN: the symbol column has no empty marks.
            na_values={name: _EMPTY_CELLS for name in columns if name not in symbols},
            skip_blank_lines=False,
            encoding="utf-8-sig",
            low_memory=False,
        )
    except pandas.errors.EmptyDataError as error:
        raise DataError(f"{path.name} holds no rows; expected prices") from error
    except (pandas.errors.ParserError, UnicodeDecodeError, EOFError, OSError) as error:
        raise DataError(
            f"{path.name} is no readable CSV: {_first_line(error)}; expected UTF-8 text with one header line and the "
            "same number of cells in each line"
        ) from error
    frame.columns = columns
    blank = frame.replace("", np.nan).isna().all(axis=1)
    return Table(frame[~blank], path.name, 2)


def _open(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _flat(frame: Any) -> Any:
    """A DataFrame with one level of columns, its named index among them, and rows numbered from 0."""
    pandas = need("pandas", "reading prices")
    if frame.columns.nlevels == 2:
        # (field, symbol) columns, as download tools make them: one row per symbol and day.
        level = next((i for i in (0, 1) if {_plain(c) for c in frame.columns.get_level_values(i)} & {"close"}), None)
        if level is None:
            raise DataError("DataFrame: two levels of columns, but none has 'Close'; expected (field, symbol)")
        frame = frame.stack(1 - level, future_stack=True)
        frame.index = frame.index.set_names(["Date", "Symbol"])
    elif frame.columns.nlevels > 2:
        raise DataError(f"DataFrame: expected one or two levels of columns, got {frame.columns.nlevels}")
    if isinstance(frame.index, pandas.DatetimeIndex) and frame.index.name is None:
        frame = frame.rename_axis("Date")
    frame = frame.reset_index() if any(name is not None for name in frame.index.names) else frame.reset_index(drop=True)
    return frame.rename(columns=str)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].removeprefix("Error tokenizing data. C error: ") if text else type(error).__name__
