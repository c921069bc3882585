"""The command line: demo, train, predict, evaluate, bench, info, completion."""

from __future__ import annotations

import argparse
import csv
import errno
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Sequence
from typing import Any

from hiermt import _interrupts
from hiermt._version import __version__
from hiermt.cli import bench, completion, config_file, demo, evaluate, info, predict, train
from hiermt.cli.options import Parser
from hiermt.cli.output import logging_to_streams

COMMANDS = (demo, train, predict, evaluate, bench, info, completion)
FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130

_EXIT_CODES = """\
exit codes:
  0    done
  1    failed: the training diverged, or a defect of hiermt
  2    an error that you can correct: an option, a file, a missing package, memory, a full disk
  130  interrupted by Ctrl-C; every file is either the old or the new one

HIERMT_DEBUG=1 shows the traceback of an error. hiermt COMMAND --help shows options and examples.
"""

# Errors whose cause is outside of hiermt. Readers of damaged files raise the last three.
_CORRECTABLE = (
    *(ValueError, OSError, ImportError, TypeError, RuntimeError, MemoryError),
    *(EOFError, zlib.error, csv.Error),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Every error is one line on stderr; ``HIERMT_DEBUG=1`` raises it instead.

    Args:
        argv (sequence of str, optional): arguments. (default: those of the process)

    Returns:
        The exit code: 0 done, 1 failed, 2 an error that the user can correct, 130 interrupted.

    Raises:
        SystemExit: with code 2, the arguments do not fit the options; with code 0, help or version were asked for.
    """
    # Both are None in a process without standard output, such as a service.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # An unencodable character must not abort a training.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    args = None
    try:
        _interrupts.raises_again()
        args = _parse(sys.argv[1:] if argv is None else argv)
        with logging_to_streams(args.json):
            result = args.run(args)
            if args.json:
                print(json.dumps(result, indent=2, allow_nan=False, default=str))
            # Flushed here, where a full disk can still be reported.
            sys.stdout.flush()
            return 0
    except KeyboardInterrupt:
        print(f"\ninterrupted{_advice(args)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the pipe, such as head, has exited; this is not an error.
        _drop_output()
        return 0
    except Exception as error:
        if os.environ.get("HIERMT_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is None:
            # The rest of the buffer would fail again, with a traceback, at the end of the process.
            _drop_output()
        code, text = _told(error)
        print(f"error: {text}", file=sys.stderr)
        return code


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="hiermt",
        description="Temporal graph network for stocks: Down, Neutral or Up tomorrow.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("--version", action="version", version=f"hiermt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    commands: Any = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    args = parser.parse_args(config_file.expand(argv, commands.choices))
    # Recorded beside the results.
    args.argv = list(argv)
    return args


def _told(error: Exception) -> tuple[int, str]:
    """Exit code and sentence of an error."""
    if isinstance(error, FloatingPointError):
        return FAILED, _one_line(error)
    if isinstance(error, (EOFError, zlib.error, csv.Error)) or type(error).__module__.startswith("safetensors"):
        return USER_ERROR, f"a file is damaged: {_one_line(error)}"
    if isinstance(error, _CORRECTABLE):
        return USER_ERROR, _one_line(error)
    text = f"{type(error).__name__}: {_one_line(error)}".removesuffix(f": {type(error).__name__}")
    return FAILED, f"{text}; this is a defect of hiermt: please report it with the traceback that HIERMT_DEBUG=1 shows"


def _advice(args: argparse.Namespace | None) -> str:
    checkpoint = getattr(args, "checkpoint", None)
    if checkpoint is not None and checkpoint.is_file():
        return f"; --resume continues from {checkpoint}"
    return ""


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
