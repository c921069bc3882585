"""Sliding windows over a series of days, as views."""

from __future__ import annotations

from torch import Tensor

from hiermt._arguments import check_integer
from hiermt.data._errors import DataError


def windows(series: Tensor, length: int) -> Tensor:
    """All windows of `length` consecutive days, sharing the storage of `series`.

    Window ``w`` holds days ``w`` to ``w + length - 1``, oldest first.

    Args:
        series (Tensor): features of each stock and day.
        length (int): ``T``, days in a window.

    Shapes:
        - **series:** ``[S, D, F]``
        - **returns:** ``[W, S, T, F]`` with ``W = D - T + 1``, a view

    Raises:
        TypeError: `length` is not an integer.
        ValueError: `length` is below 1.
        DataError: `series` has fewer days than `length`.
    """
    check_integer("window", length, 1)
    if series.dim() != 3:
        raise DataError(f"series: expected [stocks, days, features], got {list(series.shape)}")
    if series.size(1) < length:
        raise DataError(f"{series.size(1)} days, but a window has {length}; give a longer history or a shorter window")
    return series.unfold(1, int(length), 1).permute(1, 0, 3, 2)


def num_windows(num_days: int, length: int) -> int:
    """The number of windows in a history.

    Args:
        num_days (int): days of the history.
        length (int): days of a window.

    Raises:
        TypeError: one of the two is not an integer.
        ValueError: `num_days` is negative or `length` below 1.
    """
    check_integer("num_days", num_days, 0)
    check_integer("window", length, 1)
    return max(int(num_days) - int(length) + 1, 0)
