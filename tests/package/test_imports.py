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


def imports(module: str) -> set[str]:
    """The modules that `module` imports anywhere: at its top, in functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from hiermt import data` imports a module; `from hiermt.graph import Graph` a name of a package.
            found |= {name if name in FILES else node.module for name in inner}
    return (found & FILES.keys()) - {module}


GRAPH = {module: imports(module) for module in FILES}


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


def test_tests_are_collected_without_the_library() -> None:
    """``hiermt.ops`` needs it, so a file that imports it at its top skips itself before that."""
    wanted = {"hiermt.ops", "hiermt.ops.operator"}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.If) and "allow_module_level=True" in ast.unparse(node):
                break
            if isinstance(node, ast.ImportFrom):
                found = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not found & wanted, f"{path}: line {node.lineno} imports hiermt.ops without the library"
