"""Errors and warnings about data."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

_HERE = str(Path(__file__).parent)


class DataError(ValueError):
    """Data that cannot be used as it is; the message says where, why and what to change."""


class DataWarning(UserWarning):
    """Data that was repaired, or features that had to be left out."""


def warn(message: str) -> None:
    """Warns of a repair; the warning points at the line outside of this package that asked for the data."""
    level = 1
    frame = sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, DataWarning, stacklevel=level)


def some(names: Any) -> str:
    """A few names of many, for a message."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
