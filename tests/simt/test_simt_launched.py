"""What finds the kernels that no test launches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptx import sources
from simt import launched, program
from simt.cases import launches as launches_of
from simt.cases import needs_harness, scan
from support import every_kernel

SCAN = "gated_scan_fwd_kernel<float,ScanTeam<float,{},(WeightsIn)0,false>,false>"


def test_a_kernel_counts_by_name() -> None:
    kernels = {16: "one_kernel<float>", 32: "two_kernel<float>", 48: "one_kernel<float>"}
    assert launched.never_launched(kernels, [48]) == ["two_kernel<float>"]
    assert launched.never_launched(kernels, [16, 32, 32]) == []


@needs_harness
def test_the_harness_records_what_it_launches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "launched"
    monkeypatch.setenv("HIERMT_SIMT_LAUNCHES", str(record))
    monkeypatch.delenv("HIERMT_SIMT_PTX", raising=False)
    launches_of(scan(16))
    names = sources.addresses()
    found = {names[int(line, 16)] for line in record.read_text().split()}
    assert len(found) == 2 and SCAN.format(16) in found
    assert launched.main([str(record)]) == 1
    said = capsys.readouterr().out
    assert f"\n  {SCAN.format(8)}\n" in said and SCAN.format(16) not in said


FILES = {path.name for path in every_kernel.FOLDER.glob("test_*.py")}


def finished(record: Path, passed: set[str], failed: bool = False) -> tuple[every_kernel.EveryKernel, pytest.ExitCode]:
    """The plugin and the exit status of a run in which a test of each of these files passed."""
    plugin = every_kernel.EveryKernel(record)
    plugin.passed, plugin.failed = passed, failed
    session: Any = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    plugin.pytest_sessionfinish(session)
    return plugin, session.exitstatus


@needs_harness
def test_a_run_of_all_tests_fails_if_a_kernel_was_left_out(tmp_path: Path) -> None:
    record = tmp_path / "launched"
    names = sources.addresses()
    record.write_text("".join(f"{at:x}\n" for at, name in names.items() if name != SCAN.format(16)))
    plugin, status = finished(record, FILES)
    assert plugin.missing == [SCAN.format(16)] and status == pytest.ExitCode.TESTS_FAILED
    record.write_text("".join(f"{at:x}\n" for at in names))
    plugin, status = finished(record, FILES)
    assert plugin.missing == [] and status == pytest.ExitCode.OK


def test_a_run_of_all_tests_fails_if_no_test_of_a_file_passed(tmp_path: Path) -> None:
    plugin, status = finished(tmp_path, FILES - {"test_simt.py"})
    assert plugin.untested == ["test_simt.py"] and status == pytest.ExitCode.TESTS_FAILED
    said: list[str] = []
    reporter: Any = SimpleNamespace(section=lambda title, **_: said.append(title), write_line=said.append)
    plugin.pytest_terminal_summary(reporter)
    assert said == ["files of tests/simt of which no test passed", "test_simt.py"]


@pytest.mark.parametrize(("passed", "failed"), [(set(), False), ({"test_simt.py"}, True)])
def test_a_run_without_a_compiler_and_a_failed_one_end_as_they_are(
    passed: set[str], failed: bool, tmp_path: Path
) -> None:
    assert finished(tmp_path, passed, failed)[1] == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tests"], True),
        (["tests/data", "tests/simt"], True),
        (["tests/data"], False),
        (["tests/simt/test_simt.py"], False),
        (["tests/simt/test_simt.py::test_detector_fires"], False),
        (["tests", "-k", "scan"], False),
        (["tests", "-m", "fast"], False),
        (["tests", "--deselect", "tests/simt/test_simt.py"], False),
        (["tests", "--ignore", "tests/ptx"], False),
        (["tests", "--last-failed"], False),
        (["tests", "--stepwise"], False),
        (["tests", "--stepwise-skip"], False),
    ],
)
def test_a_run_of_all_tests(arguments: list[str], expected: bool, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.pluginmanager.has_plugin("cacheprovider") and arguments[-1].startswith(("--last", "--step")):
        pytest.skip("an option of pytest's cache, which this run goes without")
    option = pytestconfig._parser.parse_known_args(arguments)
    params = SimpleNamespace(dir=program.ROOT)
    config: Any = SimpleNamespace(option=option, args=option.file_or_dir, invocation_params=params)
    assert every_kernel.runs_all(config) == expected
