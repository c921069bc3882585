"""Every message that the package raises, from its sources: Python by its syntax, C++ by the calls of ``fail``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# Raised for the interpreter or for callers within the package, who read the type alone.
SILENT = {"AttributeError", "KeyError", "StopIteration", "KeyboardInterrupt", "SystemExit", "AssertionError"}


class Message(NamedTuple):
    """Where a message is raised, its exception, and its text with ``{}`` for each value."""

    where: str
    kind: str
    text: str


def _text(node: ast.expr) -> str | None:
    """The literal text of an expression, ``None`` if it has none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else "{}" for one in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = _text(node.left), _text(node.right)
        return None if parts == (None, None) else "".join("{}" if one is None else one for one in parts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _text(node.func.value)
    return None


def of_python() -> Iterator[Message]:
    """Of each ``raise Kind("...")``, but for exceptions that are raised again and texts that are made elsewhere."""
    for path in sorted((ROOT / "hiermt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            kind = ast.unparse(node.exc.func).rpartition(".")[2]
            texts = [text for argument in node.exc.args if (text := _text(argument)) is not None]
            if kind[:1].isupper() and kind not in SILENT and texts:
                yield Message(f"{path.relative_to(ROOT)}:{node.lineno}", kind, texts[0])


_FAIL = re.compile(r"\bfail\((\w+), ((?:[^;\"]|\"(?:[^\"\\]|\\.)*\")*)\);")


def of_cpp() -> Iterator[Message]:
    """Of each call of ``fail``: the argument that it names, then its text."""
    for path in sorted((ROOT / "csrc" / "host").glob("*")):
        source = path.read_text("utf-8")
        for found in _FAIL.finditer(source):
            # Strings first, as they may hold the commas that part the arguments.
            texts = iter(re.findall(r"\"((?:[^\"\\]|\\.)*)\"", found[2]))
            words = re.sub(r"\"(?:[^\"\\]|\\.)*\"", "TEXT", found[2]).split(",")
            name, *rest = [next(texts) if word.strip() == "TEXT" else "{}" for word in words]
            text = "".join(rest)
            line = source[: found.start()].count("\n") + 1
            yield Message(f"{path.relative_to(ROOT)}:{line}", "fail", f"{name}: {text}")
