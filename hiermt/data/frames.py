"""Reads files and DataFrames into a frame with one level of columns, day and symbol among them."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import itertools
import warnings
import zlib
from pathlib import Path
from typing import Any

from hiermt.data._errors import DataError, first_line, some
from hiermt.data.column_names import DATE_NAMES, SYMBOL_NAMES, clean, is_bar_field, is_close, is_unnamed, key
from hiermt.data.optional import import_optional

_EMPTY_CELLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]
# Far more than the stocks of any market; pandas would take minutes for more.
_MOST_COLUMNS = 50_000
_DELIMITERS = ",;\t|"
# More than any table has: a line of 50,000 cells of 80 characters, twenty years of daily bars of 5,000 stocks, text
# that gzip packs 200 to 1. A file of a megabyte can hold a gigabyte, and is refused before it is unpacked.
_LONGEST_LINE = 4 << 20
_MOST_BYTES = 2 << 30
_MOST_PACKED, _FREE_BYTES = 200, 64 << 20
_MOST_CELLS = 1 << 28
_PIECE = 1 << 20
_LEVEL_NAMES = {
    "",
    *["price", "prices", "attribute", "attributes", "field", "fields", "tickers", "symbols"],
    *SYMBOL_NAMES,
    *DATE_NAMES,
}


def from_csv(path: Path) -> Any:
    """The rows of a CSV; index 0 is line 2, the first below the header.

    Raises:
        DataError: the file is not UTF-8 text, not a table, or damaged.
    """
    pandas = import_optional("pandas", "reading prices")
    try:
        return _parse(_text(path), path.name)
    except DataError:
        raise
    except pandas.errors.EmptyDataError as error:
        raise DataError(f"{path.name} holds no rows; expected prices") from error
    except MemoryError as error:
        raise DataError(f"{path.name} is not a readable CSV: it does not fit into memory") from error
    except (
        pandas.errors.ParserError,
        pandas.errors.ParserWarning,
        UnicodeDecodeError,
        EOFError,
        OSError,
        OverflowError,
        csv.Error,
        zlib.error,
    ) as error:
        reason = first_line(error).removeprefix("Error tokenizing data. C error: ")
        if isinstance(error, pandas.errors.ParserWarning):
            reason = "its rows have more cells than the header, perhaps because of commas in numbers"
        raise DataError(
            f"{path.name} is not a readable CSV: {reason}; expected UTF-8 text with one header line and equally "
            "many cells in each line"
        ) from error


def from_parquet(path: Path) -> Any:
    """The rows of a Parquet file.

    Raises:
        DataError: the file is damaged.
    """
    pandas = import_optional("pandas", "reading prices")
    import_optional("pyarrow", "reading Parquet")
    try:
        _check_cells(path)
        frame = pandas.read_parquet(path)
    except (ImportError, DataError):
        raise
    except Exception as error:  # pyarrow raises many classes, all of which mean a damaged file
        raise DataError(f"{path.name} is not a readable Parquet file: {first_line(error)}") from error
    return flatten_columns(frame, path.name)


def _check_cells(path: Path) -> None:
    """Refuses a Parquet file of more cells than any table has: a kilobyte can hold a billion equal rows.

    Also one whose texts are not UTF-8, which pandas would tell only where one is looked at.
    """
    parquet: Any = importlib.import_module("pyarrow.parquet")
    is_primitive = importlib.import_module("pyarrow.types").is_primitive
    found = parquet.read_metadata(path)
    if found.num_rows * found.num_columns > _MOST_CELLS:
        size = f"{found.num_rows:,} rows of {found.num_columns:,} columns"
        raise DataError(f"{path.name} holds {size}; expected at most {_MOST_CELLS:,} cells; split it")
    texts = [field.name for field in parquet.read_schema(path) if not is_primitive(field.type)]
    parquet.read_table(path, columns=texts).validate(full=True)


def flatten_columns(frame: Any, source: str) -> Any:
    """A DataFrame with one level of columns, clean names, a named index as columns, and rows numbered from 0.

    Raises:
        DataError: there are more than two levels of columns, or two other than field and symbol.
    """
    pandas = import_optional("pandas", "reading prices")
    if frame.columns.nlevels == 1 and len(frame.columns) and all(isinstance(c, tuple) for c in frame.columns):
        frame = frame.set_axis(pandas.MultiIndex.from_tuples(list(frame.columns)), axis=1)
    date_keys = {key(name) for name in DATE_NAMES}
    if isinstance(frame.index, pandas.DatetimeIndex):
        if frame.index.name not in frame.columns and key(str(frame.index.name)) not in date_keys:
            frame = frame.rename_axis(index="Date")
    elif (
        frame.columns.nlevels == frame.index.nlevels == 1
        and frame.index.name is None
        and not isinstance(frame.index, pandas.RangeIndex)
        and date_keys.isdisjoint(key(str(column)) for column in frame.columns)
        and "index" not in frame.columns
    ):
        # Days as text or numbers; reset_index would call the column so, too.
        frame = frame.rename_axis(index="index")
    names = list(frame.index.names)
    if any(name is not None for name in names):
        twice = next((name for name in names if frame.columns.nlevels == 1 and name in frame.columns), None)
        if twice is not None:
            raise DataError(f"{source}: '{twice}' is there twice, as a column and in the index; remove one")
        frame = frame.reset_index()
    else:
        frame = frame.reset_index(drop=True)
    if frame.columns.nlevels > 1:
        frame = _unstacked(frame, source)
    return frame.set_axis(_unique(frame.columns), axis=1)


def _text(path: Path) -> str:
    """The text of a file, read in pieces up to the first that no table has."""
    pieces, size, line = [], 0, 0
    packed = path.suffix.lower() == ".gz"
    most = min(_MOST_BYTES, max(_MOST_PACKED * path.stat().st_size, _FREE_BYTES)) if packed else _MOST_BYTES
    open_file: Any = gzip.open if packed else open
    with open_file(path, "rb") as file:
        while piece := file.read(_PIECE):
            if b"\0" in piece:
                raise DataError(f"{path.name} is not a readable CSV: it contains zero bytes; expected UTF-8 text")
            pieces.append(piece)
            size += len(piece)
            lines = piece.splitlines()
            if max(line + len(lines[0]), *map(len, lines)) > _LONGEST_LINE:
                raise DataError(f"{path.name} has a line of more than {_LONGEST_LINE:,} bytes; expected a table")
            if size > most:
                raise DataError(f"{path.name} holds more than {most:,} bytes of text; split it, or use Parquet")
            ended = piece.endswith((b"\n", b"\r"))
            line = 0 if ended else len(lines[-1]) + (line if len(lines) == 1 else 0)
    return b"".join(pieces).decode("utf-8-sig")


def _parse(text: str, source: str) -> Any:
    pandas = import_optional("pandas", "reading prices")
    file = io.StringIO(text, newline=None)
    line = file.readline()
    if not line.strip():
        raise DataError(f"{source}: line 1 is empty; expected a header with the names of the columns")
    delimiter = max(_DELIMITERS, key=line.count)
    file.seek(0)
    head = list(itertools.islice(csv.reader(file, delimiter=delimiter), 3))
    if "".join(head[0]).count("\n"):
        raise DataError(f"{source}: line 1 opens a quote that it does not close; expected a header of one line")
    if len(head[0]) > _MOST_COLUMNS:
        raise DataError(f"{source}: line 1 names {len(head[0]):,} columns; expected at most {_MOST_COLUMNS:,}")
    levels = _levels(head)
    first = head[0] if levels is None else levels[0]
    columns = _unique(first)
    # NA in a number is a missing value, in a symbol it is a name; days are read as text.
    symbols = [str(i) for i, name in enumerate(columns) if key(name) in SYMBOL_NAMES]
    texts = [*symbols, *(str(i) for i, name in enumerate(columns) if key(name) in DATE_NAMES)]
    numbered = [str(i) for i in range(len(columns))]
    skipped = 1 if levels is None else levels[1]
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        frame = pandas.read_csv(
            file,
            sep=delimiter,
            header=None,
            skiprows=skipped,
            names=numbered,
            index_col=False,
            dtype=dict.fromkeys(texts, str),
            keep_default_na=False,
            na_values={name: _EMPTY_CELLS for name in numbered if name not in symbols},
            skip_blank_lines=False,
            low_memory=False,
        )
    frame.index += skipped - 1
    blank = frame.isna()
    for name in symbols:
        blank[name] |= frame[name].str.strip() == ""
    frame, blank = frame[~blank.all(axis=1)], blank.all(axis=0)
    if levels is not None:
        rows = [["Date", *head[0][1:]], ["", *head[1][1:]]]
        return _unstacked(frame.set_axis(pandas.MultiIndex.from_arrays(rows), axis=1), source)
    # A delimiter at the end of each line makes a column without a name and without cells.
    kept = [i for i, name in enumerate(columns) if not (is_unnamed(name) and blank[str(i)])]
    return frame[[str(i) for i in kept]].set_axis([columns[i] for i in kept], axis=1)


def _unique(names: Any) -> list[str]:
    """Clean names; one that is missing becomes the placeholder of pandas, or keeps its blanks."""
    found: list[str] = []
    for i, name in enumerate(names):
        blank = name if isinstance(name, str) and name and name not in found else f"Unnamed: {i}"
        found.append(clean(name) or blank)
    return found


def _levels(head: list[list[str]]) -> tuple[list[str], int] | None:
    """Names and number of header lines of a table with two levels of columns; ``None`` for one level.

    pandas writes one line per level, and another for the name of the index::

        Price,Close,Close,Open,Open
        Ticker,AAPL,MSFT,AAPL,MSFT
        Date,,,,
    """
    if len(head) < 2 or len(head[0]) < 2 or len(head[0]) != len(head[1]):
        return None
    first, second = ([clean(cell) for cell in row[1:]] for row in head[:2])
    if not any(_is_level(fields) and all(others) for fields, others in ((first, second), (second, first))):
        return None
    third = [clean(cell) for cell in head[2]] if len(head) > 2 and head[2] else [""]
    if key(third[0]) in DATE_NAMES and not any(third[1:]):
        return ["Date", *first], 3
    named = all(key(row[0]) in _LEVEL_NAMES for row in head[:2])
    # Numbers in line 2 may be symbols, or the first row of a table with one level, in which each field occurs once.
    repeated = any(_is_level(fields) and len(set(fields)) < len(fields) for fields in (first, second))
    levelled = repeated or not any(_is_number(cell) for cell in (*first, *second))
    return (["Date", *first], 2) if named and levelled else None


def _is_level(names: list[str]) -> bool:
    """Whether all names are fields, a close among them."""
    return any(is_close(name) for name in names) and all(is_bar_field(name) for name in names)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _unstacked(frame: Any, source: str) -> Any:
    """One row per symbol and day, from the columns (field, symbol) or (symbol, field) of download tools."""
    if frame.columns.nlevels != 2:
        raise DataError(f"{source}: expected one or two levels of columns, got {frame.columns.nlevels}")
    pairs = [tuple(clean(part) for part in column) for column in frame.columns]
    dated = [i for i, (a, b) in enumerate(pairs) if key(a or b) in DATE_NAMES and is_unnamed(b if a else a)]
    if not dated:
        raise DataError(
            f"{source}: two levels of columns, but no Date among {some(' '.join(pair).strip() for pair in pairs)}; "
            "keep the days in the index, or in a column called 'Date'"
        )
    others = [i for i in range(len(pairs)) if i not in dated]
    levels = [[pairs[i][level] for i in others] for level in (0, 1)]
    found = [level for level in (0, 1) if _is_level(levels[level])] or [
        level for level in (0, 1) if any(is_close(name) for name in levels[level])
    ]
    if len(found) != 1:
        raise DataError(
            f"{source}: two levels of columns, but {'both have' if found else 'none has'} 'Close' or 'Adj Close'; "
            "expected (field, symbol)"
        )
    fields, symbols = levels[found[0]], levels[1 - found[0]]
    if "" in symbols:
        raise DataError(f"{source}: column '{fields[symbols.index('')]}' has no symbol; name its stock")
    columns: dict[str, dict[str, int]] = {symbol: {} for symbol in symbols}
    for field, symbol, i in zip(fields, symbols, others, strict=True):
        if columns[symbol].setdefault(field, i) != i:
            raise DataError(f"{source}: column ({field}, {symbol}) is there twice; remove one")
    pandas = import_optional("pandas", "reading prices")
    dates = frame.iloc[:, dated[0]]
    return pandas.concat(
        pandas.DataFrame(
            {**{field: frame.iloc[:, i] for field, i in own.items()}, "Date": dates, "Symbol": symbol},
        )
        for symbol, own in columns.items()
    )
