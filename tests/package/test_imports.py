"""Direction of the imports: no circle among the modules, and no layer reaches one above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hiermt"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(node: ast.AST, where: str) -> set[str]:
    """The modules of the package that a statement imports."""
    found: set[str] = set()
    if isinstance(node, ast.Import):
        found = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module, f"{where}: line {node.lineno} is a relative import"
        inner = {f"{node.module}.{alias.name}" for alias in node.names}
        # `from hiermt import data` imports a module; `from hiermt.graph import Graph` a name of a package.
        found = {name if name in FILES else node.module for name in inner}
    return found & FILES.keys()


def imports(text: str, where: str) -> set[str]:
    """The modules that a file imports anywhere: at its top, in functions and under TYPE_CHECKING."""
    return {module for node in ast.walk(ast.parse(text)) for module in imported(node, where)}


GRAPH = {module: imports(path.read_text(), module) - {module} for module, path in FILES.items()}


def below(package: str) -> set[str]:
    return {module for module in FILES if module == package or module.startswith(package + ".")}


def reachable(start: set[str]) -> set[str]:
    seen, new = set(start), set(start)
    while new:
        new = {target for module in new for target in GRAPH[module]} - seen
        seen |= new
    return seen


def test_no_import_circle() -> None:
    left = dict(GRAPH)
    # A module that imports none of the others, or that none of them imports, is in no circle.
    while out := {
        module
        for module, targets in left.items()
        if not targets & left.keys() or not any(module in others for others in left.values())
    }:
        left = {module: targets for module, targets in left.items() if module not in out}
    assert not left, {module: sorted(targets & left.keys()) for module, targets in left.items()}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("hiermt.reference", "hiermt.ops"),
        ("hiermt.data", "hiermt.nn"),
        ("hiermt.data", "hiermt.functional"),
        ("hiermt.graph", "hiermt.functional"),
        ("hiermt.io.files", "hiermt.nn"),
    ],
)
def test_a_layer_never_reaches_one_above(package: str, forbidden: str) -> None:
    assert not reachable(below(package)) & below(forbidden)


def test_the_dispatcher_alone_imports_the_operators() -> None:
    allowed = below("hiermt.ops") | {"hiermt.native.dispatch"}
    users = {module for module, targets in GRAPH.items() if targets & below("hiermt.ops")}
    assert users <= allowed


def imported_at_once(text: str, where: str) -> set[str]:
    """The modules that a test file imports when it is collected, unless it has skipped itself before."""
    found: set[str] = set()
    left: list[ast.AST] = list(ast.parse(text).body)
    while left:
        node = left.pop(0)
        if isinstance(node, ast.If) and "allow_module_level=True" in ast.unparse(node):
            break
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found |= imported(node, where)
            left = [*ast.iter_child_nodes(node), *left]
    return found


def test_tests_are_collected_without_the_library() -> None:
    """``hiermt.ops`` needs it, so a file that imports it at its top skips itself before that."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        found = imported_at_once(path.read_text(), str(path)) & below("hiermt.ops")
        assert not found, f"{path} imports {', '.join(sorted(found))} without the library"


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("import hiermt.ops", "hiermt.ops"),
        ("import hiermt.ops as y", "hiermt.ops"),
        ("import torch, hiermt.ops.operator as y", "hiermt.ops.operator"),
        ("from hiermt import ops", "hiermt.ops"),
        ("from hiermt import data, ops as y", "hiermt.ops"),
        ("from hiermt.ops import operator", "hiermt.ops.operator"),
        ("from hiermt.ops import Operator", "hiermt.ops"),
        ("from hiermt.ops.operator import Operator", "hiermt.ops.operator"),
        ("from hiermt.ops.operator import *", "hiermt.ops.operator"),
    ],
)
def test_every_form_of_an_import_is_seen(line: str, module: str) -> None:
    for block in ("{}", "if True:\n    {}", "try:\n    pass\nfinally:\n    {}", "class One:\n    {}"):
        text = block.format(line)
        assert module in imports(text, "planted")
        assert module in imported_at_once(text, "planted")
    inside = f"def one():\n    {line}"
    assert module in imports(inside, "planted")
    assert not imported_at_once(inside, "planted")
    skipped = f"if not there:\n    pytest.skip('no library', allow_module_level=True)\n{line}"
    assert not imported_at_once(skipped, "planted")


@pytest.mark.parametrize("line", ["from . import ops", "from .ops import operator", "from ..ops.operator import x"])
def test_a_relative_import_is_an_error(line: str) -> None:
    with pytest.raises(AssertionError, match="planted: line 1 is a relative import"):
        imports(line, "planted")
