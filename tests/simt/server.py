"""A running program of the harness, which calls each operator in a fork of its own."""

from __future__ import annotations

import atexit
import functools
import os
import struct
import subprocess
from pathlib import Path


class Server:
    """The program under one environment."""

    def __init__(self, program: Path, variables: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([str(program)], stdin=pipe, stdout=pipe, env={**os.environ, **variables})
        atexit.register(self.close)

    def call(self, op: str, arguments: bytes) -> tuple[int, bytes, bytes]:
        """Exit status, standard output and error of the fork."""
        to, answer = self.process.stdin, self.process.stdout
        assert to is not None and answer is not None
        try:
            to.write(struct.pack("<qq", len(op), len(arguments)) + op.encode() + arguments)
            to.flush()
            head = answer.read(24)
            if len(head) < 24:
                raise RuntimeError(f"{op}: the harness ended with {self.process.wait()}")
            status, out, err = struct.unpack("<qqq", head)
            return status, answer.read(out), answer.read(err)
        except BaseException:  # what is left of a reply would be read as the next
            self.close()
            started.cache_clear()
            raise

    def close(self) -> None:
        atexit.unregister(self.close)
        self.process.kill()
        self.process.wait()


@functools.cache
def started(program: Path, variables: frozenset[tuple[str, str]]) -> Server:
    """The server of a program under some variables, kept for the next call."""
    return Server(program, dict(variables))
