"""Errors and warnings about data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hiermt import _warnings


class DataError(ValueError):
    """Unusable data; the message says where, why and what to change."""


class DataWarning(UserWarning):
    """Data that was repaired or left out, or whose meaning is not certain."""


def warn(message: str) -> None:
    """Warns with a :class:`DataWarning` that points at the caller of ``hiermt.data``."""
    _warnings.warn(message, DataWarning, Path(__file__).parent)


def some(names: Iterable[object], most: int = 6) -> str:
    """The first names of a list, for a message."""
    texts = [str(name) for name in names]
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"


def first_line(error: BaseException) -> str:
    """The first line of the text of an error, or its class if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
