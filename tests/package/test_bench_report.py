"""The report of the benchmarks: ratios, merging, and the exit code of a comparison."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "bench" / "report.py"


@pytest.fixture(scope="module")
def report() -> Any:
    spec = importlib.util.spec_from_file_location("bench_report", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def record(competitor: str, median_ms: float, **more: Any) -> dict[str, Any]:
    return {
        "case": "a",
        "direction": "forward",
        "competitor": competitor,
        "median_ms": median_ms,
        "stocks": 100,
        **more,
    }


def test_table_gives_the_ratio_to_pyg(report: Any) -> None:
    text = report.table([record("pyg", 20.0), record("native", 0.5)])
    assert "20 ms, 5,000/s |" in text
    assert "0.5 ms, 200,000/s (**40.0x**)" in text


def test_merge_replaces_what_was_measured_again(report: Any) -> None:
    merged = report.merge([record("pyg", 20.0), record("twin", 4.0)], [record("pyg", 10.0)])
    assert sorted((r["competitor"], r["median_ms"]) for r in merged) == [("pyg", 10.0), ("twin", 4.0)]


@pytest.mark.parametrize(("after", "code"), [(1.04, 0), (1.06, 1), (0.5, 0)])
def test_comparison_exits_non_zero_when_slower(report: Any, tmp_path: Path, after: float, code: int) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps([record("native", 1.0)]))
    new.write_text(json.dumps([record("native", after), record("twin", 9.0)]))
    assert report.main([str(old), str(new)]) == code
