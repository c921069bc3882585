"""The comparison of two counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"bench_{name}", found)
    spec.loader.exec_module(found)
    return found


def test_three_percent_more_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    report = module("report", monkeypatch)
    before = {"a forward": [{"kernel": "k", "instructions": 1000}, {"kernel": "l", "instructions": 9000}]}
    for instructions, code in ((1000, 0), (1299, 0), (1301, 1), (10, 0)):
        after = {"a forward": [{"kernel": "k", "instructions": instructions}, before["a forward"][1]]}
        assert report.compare_counts(before, after) == code
