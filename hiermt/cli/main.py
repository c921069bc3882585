"""The command line: demo, train, predict, bench, info."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from hiermt._version import __version__
from hiermt.cli import bench, demo, info, predict, train

COMMANDS = (demo, train, predict, bench, info)
USER_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    An error that the user can correct (a file, an option, a missing package) prints one line and gives exit code 2;
    ``HIERMT_DEBUG=1`` shows the traceback as well.

    Args:
        argv (sequence of str, optional): arguments. (default: those of the process)

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hiermt", description="Temporal graph network for stocks: Down, Neutral or Up tomorrow."
    )
    parser.add_argument("--version", action="version", version=f"hiermt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    args = parser.parse_args(argv)
    # Both are None in a process without standard output, such as a service.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # An unencodable character must not abort a training.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = int(args.run(args) or 0)
            # Flushed here, where a full disk can still be reported.
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the pipe, such as head, has exited; this is not an error.
        _drop_output()
        return 0
    except (ValueError, OSError, ImportError, TypeError, RuntimeError, MemoryError) as error:
        if os.environ.get("HIERMT_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is None:
            # The rest of the buffer would fail again, with a traceback, at the end of the process.
            _drop_output()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR


def _drop_output() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    # torch raises OutOfMemoryError on a GPU and a plain RuntimeError on the CPU.
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", text):
        return f"out of memory{f' ({text})' if text else ''}; use a smaller --batch-size or fewer stocks or days"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return f"the output cannot be written: {error.strerror}"
    return text or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"note: {message}", file=sys.stderr)
