"""Fails a run of all of tests/simt that has left out a kernel: its instantiation has no test, or no use.

So does a file of which no test passed, since what it would have launched is not known.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "simt"
VARIABLE = "HIERMT_SIMT_LAUNCHES"


class EveryKernel:
    """A plugin of the process that sees all reports: with pytest-xdist the one that starts the workers.

    They inherit the environment, and the harness appends what it launches to the file that it names.
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self.passed: set[str] = set()
        self.failed = False
        self.untested: list[str] = []
        self.missing: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path = Path(report.nodeid.split("::")[0])
        if path.parent.name == FOLDER.name:
            self.failed |= report.failed
            if report.when == "call" and report.passed:
                self.passed.add(path.name)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.failed or not self.passed:  # without a compiler none does
            return
        self.untested = sorted({path.name for path in FOLDER.glob("test_*.py")} - self.passed)
        if not self.untested:
            from ptx import sources
            from simt import launched

            self.missing = launched.missing(sources.addresses(), self.record)
        if (self.untested or self.missing) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for what, names in (
            ("files of tests/simt of which no test passed", self.untested),
            ("kernels that no test of tests/simt launches", self.missing),
        ):
            if names:
                terminalreporter.section(what, red=True)
                terminalreporter.write_line("\n".join(names))

    def pytest_unconfigure(self) -> None:
        self.record.unlink(missing_ok=True)
        del os.environ[VARIABLE]


def runs_all(config: pytest.Config) -> bool:
    """Whether the command line leaves out no test of tests/simt."""
    option = config.option
    chosen = [option.keyword, option.markexpr, option.deselect, option.ignore, option.ignore_glob, option.collectonly]
    # Of pytest's cache, which a run may go without.
    chosen += [getattr(option, name, False) for name in ("lf", "stepwise", "stepwise_skip")]
    if any(chosen):
        return False
    paths = [(config.invocation_params.dir / argument).resolve() for argument in config.args]
    return any(path == FOLDER or path in FOLDER.parents for path in paths)


def register(config: pytest.Config) -> None:
    """Watches a run of all of tests/simt, unless the caller records its launches."""
    if hasattr(config, "workerinput") or VARIABLE in os.environ or not runs_all(config):
        return
    handle, name = tempfile.mkstemp(prefix="hiermt-launches-")
    os.close(handle)
    os.environ[VARIABLE] = name
    config.pluginmanager.register(EveryKernel(Path(name)))
