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

    What the user can put right (a file, an option, a missing package) is told in one line, with exit code 2;
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
    # A process whose output was closed, such as a service, has none.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a sign must not end an hour of training.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = int(args.run(args) or 0)
            # Here, where a full disk behind it can still be told.
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe, such as head, has gone: no error of ours.
        _drop_output()
        return 0
    except (ValueError, OSError, ImportError, TypeError, RuntimeError, MemoryError) as error:
        if os.environ.get("HIERMT_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is None:
            # What is left in its buffer would fail once more, with a traceback, when the process ends.
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
    # torch has a class of its own for a GPU, and none for the CPU.
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", text):
        return f"out of memory{f' ({text})' if text else ''}; use a smaller --batch-size or fewer stocks or days"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return f"the output cannot be written: {error.strerror}"
    return text or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"note: {message}", file=sys.stderr)
