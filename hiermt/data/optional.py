"""Optional packages: an import of one that is missing says how to install it."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.machinery import ModuleSpec
from typing import Any

_EXTRAS = {
    "pandas": "pip install 'hiermt[data]'",
    "pyarrow": "pip install 'hiermt[data]'",
    "matplotlib": "pip install 'hiermt[train]'",
    "sklearn": "pip install 'hiermt[train]'",
    "rich": "pip install 'hiermt[train]'",
    "scipy": "pip install 'hiermt[train]'",
    "shtab": "pip install 'hiermt[completion]'",
    "safetensors": "pip install 'hiermt[train]'",
    "torch_geometric": "pip install 'hiermt[pyg]'",
    "skfolio": "pip install --no-deps skfolio",
}


def import_optional(module: str, purpose: str) -> Any:
    """Imports a module of an optional package.

    Raises:
        ImportError: the package is not installed; the message gives the command that installs it.
    """
    find_optional(module.partition(".")[0], purpose)
    return importlib.import_module(module)


def find_optional(package: str, purpose: str) -> ModuleSpec:
    """Finds an optional package without importing it.

    Raises:
        ImportError: the package is not installed; the message gives the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"{purpose} needs {package}, which is not installed; run: {_EXTRAS[package]}")
    return spec
