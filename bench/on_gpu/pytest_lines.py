"""A plugin of pytest that hands over the result of each test as soon as it has ended."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from on_gpu.lines import MARK


class Lines:
    """Prints a line per test through pytest's own terminal, past its capture of output."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or (report.when != "call" and report.outcome == "passed"):
            return
        facts = {"kind": "test", "name": report.nodeid, "outcome": report.outcome}
        if report.failed:
            facts["error"] = str(report.longrepr)[-500:]
        terminal.write_line(f"{MARK}{json.dumps(facts)}")
        terminal.flush()


def pytest_configure(config: pytest.Config) -> None:
    """Registers it in the process that reports; workers of xdist report to that one."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Lines(config))
