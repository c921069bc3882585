"""What goes wrong with data, and how an optional package is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

_EXTRAS = {
    "pandas": "pip install 'hiermt[data]'",
    "pyarrow": "pip install 'hiermt[data]'",
    "matplotlib": "pip install 'hiermt[train]'",
    "sklearn": "pip install 'hiermt[train]'",
    "safetensors": "pip install 'hiermt[train]'",
    "torch_geometric": "pip install 'hiermt[pyg]'",
    "skfolio": "pip install --no-deps skfolio",
}
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


def import_optional(module: str, purpose: str) -> Any:
    """Imports an optional package.

    Raises:
        ImportError: it is not installed; the message gives the command that installs it.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        package = module.partition(".")[0]
        raise ImportError(f"{purpose} needs {package}, which is not installed; run: {_EXTRAS[package]}")
    return importlib.import_module(module)


def some(names: Any) -> str:
    """A few names of many, for a message."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
