"""Classes of hostile input and of faults, what each must lead to, and the table of the tests that see to it.

A test says which classes it covers with ``@pytest.mark.hostile("name")``, a module with ``pytestmark``.
``tests/package/test_hostile.py`` fails for a class without a test and for a table that is not that of the markers.
The table in docs/faults.md is written by::

    PYTHONPATH=tests python -m support.hostile
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"
BEGIN, END = "<!-- hostile:begin -->", "<!-- hostile:end -->"

# name: (what comes, what it leads to)
CLASSES: dict[str, tuple[str, str]] = {
    "edge-outside": ("an end of an edge below 0 or past the last node", "`IndexError` that names the edge"),
    "edge-form": ("edges of another shape or dtype", "one sentence; int32 is taken"),
    "stale-graph": ("edges rewritten, moved, freed, or of a smaller batch", "the numbers of the new edges"),
    "empty": ("no edge, node, step, row or batch; nodes alone", "results of that size; states of zero"),
    "loops": ("self loops and duplicates among the edges", "the numbers of PyG"),
    "edge-weight": ("weights that are NaN, negative, too few, or not read by the model", "PyG's NaN, or `ValueError`"),
    "special-numbers": ("NaN, infinite, huge and subnormal numbers; saturated gates", "as in the twin and PyG"),
    "wrong-tensor": ("x of another layout, width, dtype or device", "one sentence with the way out"),
    "strides": ("slices, transposes, offsets, stride 0, of inputs and cotangents", "the same bits"),
    "large-index": ("sizes whose products pass 31 or 63 bits", "64-bit arithmetic or an exception"),
    "streams": ("another stream or device; a captured graph", "the same numbers, without a synchronisation"),
    "dtypes": ("float64, bfloat16, float16, autocast, a gradient scaler", "computed in that dtype or refused by name"),
    "determinism": ("other runs, other numbers of threads, a batch and its parts", "the same bits"),
    "compilers": ("`torch.compile` and `torch.export` with open sizes", "no break, no compilation for each size"),
    "double-backward": ("a second derivative of a native operator", "`NotImplementedError` that names the way out"),
    "workers": ("threads at once; forked and spawned workers; a worker that is ended", "no deadlock, the same numbers"),
    "no-extension": ("a library that is missing, corrupt or of another machine or torch", "one warning; the twin runs"),
    "weight-file": ("weights cut short, forged, pickled or of another model", "refused; nothing runs or changes"),
    "labels": ("labels outside 0 and 1, masks of another length, nothing to learn from", "refused, or a loss of 0"),
    "price-cells": ("gaps, duplicates, words and prices below 0 in a table", "refused or mended, with the place"),
    "price-columns": ("columns, dates and symbols that can mean several things", "read right, refused or warned of"),
    "interrupted-write": ("Ctrl-C, a full disk or a lost folder while a file is written", "the old file stays"),
    "killed": (
        "`kill -9` in a training, a checkpoint or a prediction",
        "old or new files; the same bits after a resume",
    ),
    "writers": ("several processes that write one file or folder", "the work of one of them, whole"),
    "unwritten": ("memory that no kernel has written", "is never read: allocations are poisoned"),
    "equal-parts": ("a graph of equal parts, of one, or numbered at random, by every entry", "the numbers of PyG"),
    "foreign-module": ("another computation under the names of a known model", "refused, with the difference"),
    "replaced-part": ("a part that is wrapped, patched, hooked or appended", "takes part, or is refused by name"),
    "resume": ("a training resumed, with all that may have a state", "the same bits, or refused before it begins"),
    "damaged-state": ("a training state that is damaged or of another training", "refused; nothing is changed"),
    "scalars": ("a Tensor for a float, numbers of NumPy, bools for integers", "a gradient, taken, or `TypeError`"),
    "forged-call": ("operators called by hand with lists and sizes that lie", "an exception; the process lives"),
    "outputs": ("pipes, devices, folders and links in the place of a file", "followed or refused before any work"),
    "memory": (
        "no memory left; growing sizes; thousands of steps",
        "an exception, and the next call works; no growth",
    ),
    "divergence": ("a loss or a weight that is no longer finite", "an exception; the last good state stays"),
    "rounding": ("any weights, within what a dtype can tell apart", "at most twice the error of PyG"),
    "load": (
        "many nodes, edges, steps, channels; one node with all edges",
        "the same numbers, in proportional time",
    ),
    "absent": (
        "stocks that come and go, NaN where they are absent; a mask of another form or device",
        "the numbers of PyG on those that are there; refused by name",
    ),
    "messages": ("any refusal", "names the argument, what was expected and what came"),
}


class Marked(NamedTuple):
    """A test, or a module of tests, with its classes."""

    path: str
    name: str | None
    classes: tuple[str, ...]
    backends: frozenset[str]


def _markers(node: ast.expr) -> Iterator[str]:
    """Arguments of every ``pytest.mark.hostile(...)`` in an expression."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.hostile":
            yield from (str(ast.literal_eval(argument)) for argument in call.args)


def _backends(path: str, source: str) -> frozenset[str]:
    """Where a test runs: the folder stands for it, or the source names the backends."""
    folder = path.partition("/")[0]
    if folder in ("simt", "gpu", "threads"):
        return frozenset({{"simt": "CUDA source", "gpu": "GPU", "threads": "native"}[folder]})
    if folder in ("data", "cli", "package", "training"):
        return frozenset({"any"})
    names = {"native": ("native", "backend", "problem"), "twin": ("reference", "backend", "twin", "problem")}
    return frozenset(name for name, words in names.items() if any(word in source for word in words)) or frozenset(
        {"any"}
    )


@functools.cache
def marked() -> list[Marked]:
    """Every marker in the tests."""
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        text, name = path.read_text("utf-8"), path.relative_to(TESTS).as_posix()
        for node in ast.walk(ast.parse(text)):
            classes: tuple[str, ...] = ()
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
                classes, where, source = tuple(_markers(node.value)), None, text
            elif isinstance(node, ast.FunctionDef):
                classes = tuple(one for decorator in node.decorator_list for one in _markers(decorator))
                source, where = ast.get_source_segment(text, node) or "", node.name
                source += " ".join(ast.unparse(one) for one in node.decorator_list)
            if classes:
                found.append(Marked(name, where, classes, _backends(name, source)))
    return found


def table() -> str:
    """A row for each class: input, result, tests, backends."""
    tests = marked()
    lines = ["| what comes | what it leads to | tests | on |", "|---|---|---|---|"]
    for name, (what, result) in CLASSES.items():
        mine = [one for one in tests if name in one.classes]
        paths = dict.fromkeys(one.path for one in mine)
        words = [f"`{path}`" for path in paths]
        backends = set().union(*(one.backends for one in mine))
        named = sorted(backends - {"any"}) or ["any"]
        lines.append(f"| **{name}**: {what} | {result} | {', '.join(words)} | {', '.join(named)} |")
    return "\n".join(lines)


def page() -> str:
    """docs/faults.md with the table of the markers."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
