"""What goes wrong with data, and how an optional package is asked for."""

from __future__ import annotations

import importlib
import importlib.util
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


class DataError(ValueError):
    """Data that cannot be used as it is; the message says where, why and what to change."""


class DataWarning(UserWarning):
    """Data that was repaired, or features that had to be left out."""


def need(module: str, purpose: str) -> Any:
    """Imports an optional package.

    Raises:
        ImportError: it is not installed; the message gives the command that installs it.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        package = module.partition(".")[0]
        raise ImportError(f"{purpose} needs {package}, which is not installed; run: {_EXTRAS[package]}")
    return importlib.import_module(module)
