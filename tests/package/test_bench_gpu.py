"""``make gpu`` without a GPU: limits, record and table hold whatever a stage does."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hiermt.native import extension

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("gpu")
    sys.path.remove(str(BENCH))


def python(gpu: Any, code: str, limit: float = 60) -> Any:
    return gpu.Command([sys.executable, "-c", code], limit)


def test_a_child_that_hangs_is_ended_with_its_own_children(gpu: Any, tmp_path: Path) -> None:
    run = gpu.Run([tmp_path], dry=True)
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    begin = time.monotonic()
    (found,) = run.commands(python(gpu, code, limit=5))
    assert found["exit"] == 124
    assert time.monotonic() - begin < 20


def test_nothing_starts_when_the_time_is_over(gpu: Any, tmp_path: Path) -> None:
    run = gpu.Run([tmp_path], dry=True, total=1)
    (found,) = run.commands(python(gpu, "print(1)"))
    assert found == {"command": found["command"], "skipped": "no time left"}


def test_a_stage_that_fails_leaves_the_others(gpu: Any, tmp_path: Path) -> None:
    run = gpu.Run([tmp_path], dry=True)
    run.record.update({"gpu": "NVIDIA H100 80GB HBM3", "torch": "2.11.0"})

    def breaks() -> None:
        raise RuntimeError("no such luck")

    run.stage("build", breaks)
    run.stage("test", lambda: run.commands(python(gpu, "print('fine')"), python(gpu, "raise SystemExit(3)")))
    run.stage("time", lambda: run.commands(python(gpu, "print('fine')")))
    assert run.failed() == ["build", "test"]
    record = json.loads((tmp_path / "nvidia-h100-80gb-hbm3.json").read_text())
    assert "no such luck" in record["stages"]["build"]["error"]
    assert [found["exit"] for found in record["stages"]["test"]] == [0, 3]
    assert "fine" in (tmp_path / "make-gpu.log").read_text()


@pytest.mark.parametrize(
    ("output", "count"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0),
        ("========= ERROR SUMMARY: 1 error", 1),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)", 3),
        ("========= Error: Target application terminated before first instrumented API call", None),
    ],
)
def test_sanitizers_are_read(gpu: Any, output: str, count: int | None) -> None:
    assert gpu.faults(f"78 calls, 0 failed\n{output}\n") == count


def test_an_unfinished_sanitizer_is_a_failure(gpu: Any, tmp_path: Path) -> None:
    run = gpu.Run([tmp_path], dry=True)
    run.stage("check", lambda: {"racecheck": {"exit": 124}, "initcheck": {"skipped": "not installed"}})
    assert run.failed() == ["check"]
    run.stage("check", lambda: {"racecheck": {"exit": 0, "faults": 2}})
    assert run.failed() == ["check"]


def test_kernels_that_cannot_run_are_a_failure(gpu: Any, tmp_path: Path) -> None:
    run = gpu.Run([tmp_path], dry=True)
    (found,) = run.commands(gpu.Command([sys.executable, "-c", gpu.KERNELS], 60, {"HIERMT_BACKEND": "reference"}))
    reason = extension.why_not_native("cuda")
    assert found["exit"] == (0 if reason is None else 1)
    assert reason is None or reason in found["tail"]


def test_a_dry_run_runs_all_stages(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "COMPETITORS", ("native", "unknown"))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    code = gpu.main(["--dry-run", "--out", str(tmp_path / "results"), "build", "time"])
    record = json.loads((tmp_path / "out" / "no-gpu.json").read_text())
    figures = {(figure["case"], figure["competitor"]): figure for figure in record["figures"]}
    ours = figures["forward, 32 graphs", "native"]
    if "error" not in ours:
        assert ours["ms"] > 0 and ours["how"] == "eager"
        assert figures["decision, 10 M rows", "native"]["of_copy"] > 0
    assert code == 0 or any("error" in figure for figure in figures.values())
    text = (tmp_path / "results" / "no-gpu.md").read_text()
    assert "| forward, 32 graphs | 80.0 us |" in text


def test_figures_of_a_gpu_stand_beside_those_of_a_cpu(gpu: Any, tmp_path: Path) -> None:
    figures = [
        {"case": "a", "competitor": "pyg", "ms": 9.0, "how": "eager", "required_ms": 0.08},
        {"case": "a", "competitor": "native", "ms": 0.09, "how": "graph replay", "stocks_per_s": 4e7},
        {"case": "b", "competitor": "native", "error": "CUDA error: a | b"},
    ]
    record = {"gpu": "H100", "torch": "2.11", "cuda": "13.0", "date": "2026-01-01", "figures": figures}
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    (tmp_path / "cpu.json").write_text("[]")
    (text,) = gpu.report.gpu_parts(tmp_path)
    assert "| a | 80.0 us | 9,000.0 us, eager | 90.0 us, 40.0 M stocks/s (**100.0x**) |" in text
    assert "CUDA error: a / b" in text
