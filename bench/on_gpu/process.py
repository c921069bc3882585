"""Processes with a time limit, whose output is read line by line while they run."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# A process that gets less time than this would only load torch.
LEAST_S = 5.0
TIMEOUT = 124
# Output of a process that has ended is read until there is no line for QUIET_S, at most for LATE_S.
QUIET_S, LATE_S = 2.0, 15.0
# Python files that a child imports: the package, the benchmarks and the helpers of the tests.
PATHS = (ROOT, ROOT / "bench", ROOT / "tests")

OnLine = Callable[[str, str], None]


@dataclass
class Command:
    """A process: a name for its lines, what to run, and the most seconds it gets."""

    name: str
    words: Sequence[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


class Running:
    """A started process. A thread reads its output, so that a full pipe does not block it."""

    def __init__(self, command: Command, on_line: OnLine) -> None:
        self.command, self.on_line = command, on_line
        self.begin = self.last_line = time.monotonic()
        self.tail: deque[str] = deque(maxlen=40)
        path = os.pathsep.join(filter(None, [*map(str, PATHS), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            command.words,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.tail.append(line.rstrip("\n")[:500])
            self.on_line(self.command.name, line.rstrip("\n"))
            self.last_line = time.monotonic()

    def finish(self) -> dict[str, Any]:
        """Waits up to the limit, then kills the process and its children."""
        try:
            status = self.process.wait(max(0.0, self.command.limit - (time.monotonic() - self.begin)))
        except subprocess.TimeoutExpired:
            self.kill()
            status = TIMEOUT
        seconds = round(time.monotonic() - self.begin, 1)
        # A record is written for each result, which takes longer than to print it. A grandchild in a session of its own
        # may hold the pipe open, silent or not.
        end = time.monotonic() + LATE_S
        self.reader.join(timeout=QUIET_S)
        while self.reader.is_alive() and time.monotonic() < min(end, self.last_line + QUIET_S):
            self.reader.join(timeout=0.1)
        result = {"name": self.command.name, "command": self.command.text(), "exit": status, "seconds": seconds}
        return {**result, "tail": list(self.tail)} if status else result

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


def run_all(commands: Sequence[Command], left: float, on_line: OnLine) -> list[dict[str, Any]]:
    """Runs commands side by side, each for at most `left` seconds; one result per command, in order.

    An exception or a signal that ends the caller ends them too.
    """
    running: list[Running | dict[str, Any]] = []
    try:
        for command in commands:
            command.limit = min(command.limit, left)
            try:
                if command.limit < LEAST_S:
                    running.append(_not_run(command, "no time left"))
                else:
                    running.append(Running(command, on_line))
            except OSError as error:
                running.append(_not_run(command, f"cannot be started: {error}"))
        return [one.finish() if isinstance(one, Running) else one for one in running]
    finally:
        for one in running:
            if isinstance(one, Running) and one.process.poll() is None:
                one.kill()


def _not_run(command: Command, why: str) -> dict[str, Any]:
    return {"name": command.name, "command": command.text(), "skipped": why}
