"""``make gpu`` without a GPU: order, limits and record hold whatever a stage does and whenever it is killed."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.on_gpu import BENCH, FIGURE, GPU, ROOT, kept, log, part, python

HANG = "import time; time.sleep(60)"


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("gpu")
    sys.path.remove(str(BENCH))


@pytest.fixture
def record(gpu: Any, tmp_path: Path) -> Any:
    return part("record").Record([tmp_path / "results"], [tmp_path / "log"])


# Processes --------------------------------------------------------------------------------------------------------


def test_a_child_that_hangs_is_ended_with_its_own_children_and_keeps_what_it_found(record: Any) -> None:
    code = f"{FIGURE.format('a')}; import subprocess, sys; subprocess.run([sys.executable, '-c', '{HANG}'])"
    begin = time.monotonic()
    state = record.stage("native", 6, lambda limit: record.run(limit, python(code), python("print('other')")))
    assert time.monotonic() - begin < 20
    assert state == "cut" and record.failed() == ["native"]
    assert [one["case"] for one in kept(record)["figures"]] == ["a"]
    assert [one["exit"] for one in kept(record)["stages"]["native"]["commands"]] == [124, 0]
    assert "[child] other" in log(record)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_a_kill_of_the_whole_leaves_what_was_found(gpu: Any, tmp_path: Path, number: int) -> None:
    child = f"{FIGURE.format('a')}; open({str(tmp_path / 'alive')!r}, 'w'); import time, pathlib\n" + textwrap.dedent(
        f"""
        for _ in range(600):
            time.sleep(0.1)
            pathlib.Path({str(tmp_path / "beat")!r}).write_text(str(time.time()))
            print('.')
        """
    )
    (tmp_path / "child.py").write_text(child)
    driver = f"""
    import pathlib, signal, sys
    import gpu
    from on_gpu.record import Record
    from on_gpu.process import Command
    signal.signal(signal.SIGTERM, gpu._end)
    record = Record([pathlib.Path({str(tmp_path)!r})], [pathlib.Path({str(tmp_path)!r})])
    command = Command("native", [sys.executable, {str(tmp_path / "child.py")!r}], 60)
    record.stage("native", 60, lambda limit: record.run(limit, command))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(driver)], cwd=BENCH)
    deadline = time.monotonic() + 60
    while not (tmp_path / "beat").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(20)
    found = json.loads((tmp_path / "no-gpu.json").read_text())
    assert [one["case"] for one in found["figures"]] == ["a"]
    assert found["stages"]["native"]["state"] == "running"
    assert "cut" in part("tables").stages([found])
    assert "@result" in (tmp_path / "make-gpu.log").read_text()
    # The child ends too, by the kill or because its output goes nowhere.
    time.sleep(1)
    last = (tmp_path / "beat").read_text()
    time.sleep(0.5)
    assert (tmp_path / "beat").read_text() == last


def test_a_stage_ends_when_all_that_its_process_said_is_in_the_record(record: Any) -> None:
    """The process is gone long before: each result takes a while to be written."""
    code = 'for i in range(40): print(\'@result {"kind": "check", "name": "%d", "error": "off"}\' % i)'
    write = record.write
    record.write = lambda: (time.sleep(0.1), write())
    record.stage("headline", 60, lambda limit: record.run(limit, python(code)))
    record.stage("native", 60, lambda limit: record.run(limit, python("print('next')")))
    stages = kept(record)["stages"]
    assert len(kept(record)["checks"]) == 40
    assert len(stages["headline"]["errors"]) == 40 and "errors" not in stages["native"]


def test_nothing_starts_when_the_time_is_over(record: Any) -> None:
    state = record.stage("native", 1, lambda limit: record.run(limit, python("print(1)")))
    assert state == "cut"
    assert kept(record)["stages"]["native"]["commands"][0]["skipped"] == "no time left"


def test_a_program_that_is_missing_does_not_stop_the_others(record: Any) -> None:
    missing = part("process").Command("ncu", ["/no/such/program"], 60)
    found = record.run(60, missing, python("print('fine')"))
    assert "cannot be started" in found[0]["skipped"] and found[1]["exit"] == 0


def test_a_line_that_was_cut_off_is_no_result(gpu: Any) -> None:
    parse = part("lines").parse
    assert parse('@result {"kind": "figure", "case": "a"}') == {"kind": "figure", "case": "a"}
    assert parse('@result {"kind": "figure", "ca') is None and parse("@result 3") is None and parse("figure") is None


# Stages -----------------------------------------------------------------------------------------------------------


class Pretended:
    """Stages of which each takes no time; `results` has those that end otherwise."""

    def __init__(self, record: Any, **results: Any) -> None:
        self.record, self.results, self.limits = record, results, {}
        record.data.update(GPU)

    def do(self, name: str, limit: float) -> Any:
        self.limits[name] = limit
        found = self.results.get(name, 0)
        if isinstance(found, Exception):
            raise found
        return [{"name": name, "command": name, **(found if isinstance(found, dict) else {"exit": found})}]

    def __getattr__(self, name: str) -> Callable[[float], Any]:
        return lambda limit: self.do(name, limit)


@pytest.fixture
def groups(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real plan with jobs that ask the pretended stages."""

    def ask(name: str) -> Callable[[Any, float], Any]:
        return lambda stages, limit: stages.do(name, limit)

    plan = {
        group: (seconds, [(name, limit, ask(name), matters) for name, limit, _, matters in listed])
        for group, (seconds, listed) in gpu.GROUPS.items()
    }
    monkeypatch.setattr(gpu, "GROUPS", plan)


@pytest.mark.usefixtures("groups")
def test_stages_run_in_the_order_of_worth_and_within_their_groups(gpu: Any, record: Any) -> None:
    stages = Pretended(record)
    assert gpu.run(stages, ["first", "check", "peers"], 900) == 0
    assert list(stages.limits)[:7] == ["probe", "build", "operators", "headline", "native", "kernels", "ncu"]
    assert list(stages.limits)[7:] == [
        "tests and memcheck",
        "racecheck",
        "initcheck",
        "synccheck",
        "pyg",
        "twin",
        "job",
    ]
    assert stages.limits["build"] <= 130 and stages.limits["ncu"] <= 240
    # The stages of the first group fit beside the longest build.
    assert stages.limits["operators"] + stages.limits["native"] + 130 < 250
    names = [name for part_names in part("tables").PARTS.values() for name in part_names]
    assert names == [name for name in stages.limits if name != "probe"]


@pytest.mark.usefixtures("groups")
def test_no_stage_starts_after_the_end(gpu: Any, record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    stages = Pretended(record)
    inner = stages.do

    def slow(name: str, limit: float) -> Any:
        now[0] += limit
        return inner(name, limit)

    stages.do = slow  # type: ignore[method-assign]
    stages.build = lambda limit: slow("build", 125)  # type: ignore[attr-defined]
    stages.probe = lambda limit: slow("probe", 10)  # type: ignore[attr-defined]
    gpu.run(stages, ["first", "check", "peers"], 400)
    assert sum(stages.limits.values()) <= 400
    assert stages.limits["operators"] == 45 and stages.limits["headline"] == 45
    # What is left of the 240 seconds, then the next group begins.
    assert stages.limits["native"] == 15 and "ncu" not in stages.limits
    assert stages.limits["tests and memcheck"] == 120 and "pyg" not in stages.limits
    assert record.data["stages"]["job"]["state"] == "skipped"


@pytest.mark.usefixtures("groups")
def test_a_build_that_fails_ends_the_run(gpu: Any, record: Any) -> None:
    stages = Pretended(record, build=1)
    assert gpu.run(stages, ["first"], 900) == 1
    assert list(stages.limits) == ["probe", "build"] and record.failed() == ["build"]


@pytest.mark.usefixtures("groups")
def test_a_stage_that_fails_leaves_the_others(gpu: Any, record: Any) -> None:
    stages = Pretended(record, operators=RuntimeError("no such luck"), headline=-11, ncu=1, racecheck=124)
    assert gpu.run(stages, ["first", "check"], 900) == 1
    # A machine that refuses its counters to ncu says nothing about the kernels.
    assert record.failed() == ["operators", "headline", "racecheck"]
    found = kept(record)["stages"]
    assert "no such luck" in found["operators"]["errors"][0]
    assert (found["racecheck"]["state"], found["ncu"]["state"], found["native"]["state"]) == ("cut", "failed", "done")


def test_the_compiler_s_words_reach_the_record(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = part("stages")
    record.data.update(GPU)
    monkeypatch.setattr(stages, "python", lambda *a, **k: python("print('error: no'); raise SystemExit(1)"))
    assert record.stage("build", 60, stages.Stages(record).build) == "failed"
    (command,) = kept(record)["stages"]["build"]["commands"]
    assert command["tail"] == ["error: no"]


def test_the_build_is_for_the_card_alone(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = part("stages")
    record.data.update(GPU)
    started: list[Any] = []
    monkeypatch.setattr(stages.Stages, "run", lambda self, limit, *commands: started.extend(commands) or [{"exit": 0}])
    stages.Stages(record).build(130)
    assert started[0].environment["TORCH_CUDA_ARCH_LIST"] == "9.0" and started[0].environment["FORCE_CUDA"] == "1"


def test_kernels_that_cannot_run_are_a_failure(record: Any) -> None:
    from hiermt.native import extension

    (found,) = record.run(60, python(part("stages").KERNELS))
    reason = extension.why_not_native("cuda")
    assert found["exit"] == (0 if reason is None else 1)
    assert reason is None or reason in "\n".join(found["tail"])


def program(folder: Path, name: str, code: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("output", "code", "state"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, "done"),
        ("========= ERROR SUMMARY: 1 error", 99, "failed"),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)", 99, "failed"),
        ("========= ERROR SUMMARY: 2 errors", 0, "failed"),
        ("========= Error: Target application terminated before first instrumented API call", 0, "failed"),
        ("", 255, "failed"),
    ],
)
def test_sanitizers_are_read(
    record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, code: int, state: str
) -> None:
    program(tmp_path, "compute-sanitizer", f"import sys; print({output!r}); sys.exit({code})")
    monkeypatch.setenv("PATH", str(tmp_path))
    stages = part("stages").Stages(record)
    assert record.stage("racecheck", 60, lambda limit: stages.sanitize("racecheck", limit)) == state


def test_a_sanitizer_that_is_cut_leaves_its_calls(record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"kind": "call", "name": str(i), "outcome": "passed"} for i in range(3)]
    code = "import time\n" + "".join(f"print('@result {json.dumps(one)}', flush=True)\n" for one in lines)
    program(tmp_path, "compute-sanitizer", code + "time.sleep(60)")
    monkeypatch.setenv("PATH", str(tmp_path))
    stages = part("stages").Stages(record)
    assert record.stage("racecheck", 6, lambda limit: stages.sanitize("racecheck", limit)) == "cut"
    assert kept(record)["stages"]["racecheck"]["counts"] == {"racecheck": {"passed": 3}}


def test_tools_that_are_missing_are_skipped(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = part("stages")
    monkeypatch.setattr(stages, "find", lambda *_: None)
    monkeypatch.setattr(stages.importlib.util, "find_spec", lambda name: None)
    one = stages.Stages(record)
    for name, job in {"ncu": one.ncu, "tests": one.tests, "pyg": one.pyg}.items():
        assert record.stage(name, 60, job) == "skipped"
    assert "no pytest" in log(record) and record.failed() == []


def test_ncu_writes_a_summary_before_its_full_report(
    record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "ncu", "import sys; print(' '.join(sys.argv[1:]))")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.stage("ncu", 60, part("stages").Stages(record).ncu) == "done"
    summary, full = re.findall(r"\[ncu.*\] (.*)", log(record))
    assert "--section SpeedOfLight" in summary and "--export" not in summary
    assert f"--set full --force-overwrite --export {record.logs[0] / 'step'}" in full


TESTS = """
import time
import pytest
pytestmark = pytest.mark.gpu
def test_fine(): print("noise")
def test_wrong(): assert 1 == 2
@pytest.mark.skip(reason="why not")
def test_left_out(): ...
def test_hangs(): time.sleep(60)
"""


@pytest.mark.parametrize("plugins", [True, False], ids=["with xdist", "without plugins"])
def test_tests_are_counted_until_they_are_killed(
    record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: bool
) -> None:
    stages = part("stages")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # of the run that this test is part of
    (tmp_path / "test_it.py").write_text(TESTS)
    real = stages.importlib.util.find_spec
    there = real if plugins else lambda name: real(name) if name == "pytest" else None
    monkeypatch.setattr(stages.importlib.util, "find_spec", there)
    monkeypatch.setattr(stages, "GPU_TESTS", (str(tmp_path / "test_it.py"),))
    words = stages.Stages(record).pytest_words("not own")
    assert ("-n" in words) == (plugins and real("xdist") is not None)
    if not plugins:
        words += ["-p", "no:xdist", "-p", "no:timeout", "-p", "no:benchmark"]
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  gpu\n")
    words += ["--rootdir", str(tmp_path), "-c", str(tmp_path / "pytest.ini")]
    command = part("process").Command("tests", words, 60)
    assert record.stage("tests", 15, lambda limit: record.run(limit, command)) == "failed"
    found = kept(record)["stages"]["tests"]
    assert found["counts"]["tests"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert "test_wrong" in found["errors"][0] and "assert 1 == 2" in found["errors"][0]


def test_every_test_of_a_gpu_is_in_the_list(gpu: Any) -> None:
    listed = part("stages").GPU_TESTS
    assert all((ROOT / path).exists() for path in listed)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if "mark.gpu" in text and path.name != Path(__file__).name:
            assert name.startswith(listed), f"{name} has tests of a GPU"
        elif re.search(r"skipif\(not torch\.cuda\.is_available", text):
            pytest.fail(f"{name}: mark its tests of a GPU with pytest.mark.gpu")
