"""Parses cells of text as days, and recognises numbers that are days."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date

import numpy as np
import numpy.typing as npt

from hiermt.data._errors import DataError

DayArray = npt.NDArray[np.datetime64]

_SETTLEMENT = 10
# With more values than this, numbers that follow the calendar are not prices.
_MANY = 31
FIRST_YEAR, LAST_YEAR = 1800, 2199
_TIME = r"(?:[T ]\s*\d{1,2}:?\d{2}.*)?$"
_YEAR_FIRST = re.compile(r"^(\d{4})([-/.])(\d{1,2})\2(\d{1,2})" + _TIME)
_COMPACT = re.compile(r"^(\d{4})()(\d{2})(\d{2})(?:\.0)?" + _TIME)
_YEAR_LAST = re.compile(r"^(\d{1,2})([-/.])(\d{1,2})\2(\d{4})" + _TIME)
_LOOKS_LIKE = (
    (r"\d{4}(\.0)?", "a year"),
    (r"\d{5}(\.\d*)?", "the serial number of a day in a spreadsheet"),
    (r"\d{4}[-/. ]?\d{1,2}(\.0)?|\d{1,2}[-/.]\d{4}", "a month"),
    (r"\d{4}[-/. ]?Q[1-4]|Q[1-4][-/. ]?\d{4}", "a quarter"),
    (r"\d{4}-?W\d{1,2}", "a week"),
    (r"\d{9,10}(\.\d*)?", "seconds since 1970"),
    (r"\d{12,13}(\.\d*)?", "milliseconds since 1970"),
    (r"\d{15,16}(\.\d*)?", "microseconds since 1970"),
    (r"\d{18,19}(\.\d*)?", "nanoseconds since 1970"),
)


def parse_days(cells: Sequence[str], where: str) -> DayArray:
    """The day of each cell, NaT for a cell that is not a day.

    The formats are ``2024-01-31``, ``2024/1/31``, ``2024.1.31``, ``20240131``, and, where all cells together tell
    the order, ``31.1.2024`` and ``1/31/2024``; a time of day after it is dropped.

    Args:
        cells (sequence of str): distinct cells of one column.
        where (str): name of the column in messages.

    Raises:
        DataError: all could be month/day as well as day/month.
    """
    cells = [cell.strip() for cell in cells]
    days = [_day(_YEAR_FIRST.match(cell) or _COMPACT.match(cell), (1, 3, 4)) for cell in cells]
    if not any(days):
        matches = [_YEAR_LAST.match(cell) for cell in cells]
        month_first = [_day(match, (4, 1, 3)) for match in matches]
        day_first = [_day(match, (4, 3, 1)) for match in matches]
        if all(month_first) and all(day_first) and month_first != day_first:
            raise DataError(
                f"{where}: {cells[0]!r} and all other dates could be month/day or day/month; write dates like "
                "2024-01-31"
            )
        days = month_first if all(month_first) else day_first if all(day_first) else days
    return np.array([np.datetime64(day or "NaT", "D") for day in days], dtype="datetime64[D]")


def looks_like(cell: str) -> str:
    """What a cell that is not a day looks like, as a part of a sentence; empty if unknown."""
    found = next((what for form, what in _LOOKS_LIKE if re.fullmatch(form, cell.strip(), re.IGNORECASE)), None)
    return "" if found is None else f" but looks like {found}"


def date_number(values: npt.NDArray[np.float64], days: DayArray) -> str | None:
    """How a column of numbers encodes the days of its rows (year, 20240131, seconds ...); ``None`` if it does not.

    Args:
        values (numpy.ndarray): the column.
        days (numpy.ndarray): the day of each row.

    Shapes:
        - **values**, **days:** ``[D]``
    """
    known = ~np.isnan(values)
    values, days = values[known], days[known]
    # One or two such numbers may be prices by chance.
    if len(values) < 3 or (values != np.floor(values)).any():
        return None
    since = days.astype(np.int64)
    year = days.astype("datetime64[Y]").astype(np.int64) + 1970
    month = days.astype("datetime64[M]").astype(np.int64) % 12 + 1
    day = since - days.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) + 1
    numbers = {
        "date": (10_000 * year + 100 * month + day, 10_000 * day + year + 1_000_000 * month),
        "year and month": (100 * year + month,),
        "year": (year,),
        "serial number": (since, since + 25_569, since + 719_163),
    }
    if len(values) > _MANY:
        numbers |= {"month": (month,), "day": (day,), "weekday": ((since + 3) % 7 + 1,)}
    for what, forms in numbers.items():
        if any((values == form).all() for form in forms):
            return what
    # The values may include a time of day, or be days of settlement, shortly after.
    units = (86_400.0 * 1000**power for power in range(4))
    if any((np.abs(np.floor(values / unit) - since) <= _SETTLEMENT).all() for unit in units):
        return "time"
    if np.abs(values).max() < 1e8:
        written = parse_days([f"{int(value):08d}" for value in values], "")
        # NaT is far from every day.
        if (np.abs(written.astype(np.int64).astype(np.float64) - since) <= _SETTLEMENT).all():
            return "date"
    return None


def _day(match: re.Match[str] | None, groups: tuple[int, int, int]) -> date | None:
    if match is None:
        return None
    year, month, day = (int(match.group(group)) for group in groups)
    if not FIRST_YEAR <= year <= LAST_YEAR:
        return None
    try:
        return date(year, month, day)
    except ValueError:
        return None
