"""Public docstrings name every argument, what comes back and what is raised. ruff holds their form (rules D)."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from typing import Any

import pytest

MODULES = (
    *("hiermt", "hiermt.data", "hiermt.functional", "hiermt.graph", "hiermt.inference", "hiermt.nn", "hiermt.nn.hub"),
    *("hiermt.nn.temporal", "hiermt.testing", "hiermt.training", "hiermt.training.tasks"),
)


@functools.cache
def public() -> dict[str, Any]:
    """Classes and functions of hiermt that these modules offer, by name."""
    found: dict[str, Any] = {}
    for module in map(importlib.import_module, MODULES):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
            value = getattr(module, name)
            error = inspect.isclass(value) and issubclass(value, BaseException)
            if (inspect.isclass(value) or inspect.isfunction(value)) and not error:
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


def text_of(value: Any, seen: tuple[Any, ...] = ()) -> str:
    """A docstring, and those that it refers to for the rest of its arguments."""
    own = inspect.getdoc(value) or ""
    others = map(pkgutil.resolve_name, re.findall(r":(?:class|func):`~?(hiermt\.[\w.]+)`", own))
    return "\n".join([own, *(text_of(other, (*seen, value)) for other in others if other not in (value, *seen))])


def lacking(value: Any) -> list[str]:
    """What the docstring of a class or function should say."""
    text, function = text_of(value), value.__init__ if inspect.isclass(value) else value
    if not inspect.isfunction(function) or not function.__module__.startswith("hiermt"):
        return [] if text else ["a docstring"]
    signature = inspect.signature(value)
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [name for name, one in signature.parameters.items() if one.kind not in various]
    missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
    missing += ["Args:"] * (bool(names) and not re.search("^(Args|Attributes):", text, re.M))
    if not inspect.isclass(value):
        # One thing of a class of its own is told by the first line.
        several = re.match(r"(tuple|dict|Any|Iterator)\b", str(signature.return_annotation))
        told = re.search(r"^(Returns|Yields):|\*\*returns", text, re.M)
        missing += ["Returns:"] * (several is not None and told is None)
    try:
        body = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except OSError:  # of a dataclass
        body = iter(())
    raises = any(isinstance(node, ast.Raise) and node.exc is not None for node in body)
    return missing + ["Raises:"] * (raises and "Raises:" not in text)


@pytest.mark.parametrize("name", sorted(public()))
def test_a_public_docstring_is_whole(name: str) -> None:
    assert lacking(public()[name]) == []
