"""Ctrl-C while the command line imports torch, which takes seconds: the process ends, without a traceback of torch."""

from __future__ import annotations

import os
import signal
import sys
import threading


def is_command_line() -> bool:
    """Whether this process is ``python -m hiermt`` or ``hiermt``, and not a program that imports the package."""
    # Before the package is imported, sys.argv[0] is -m in place of a file, and the rest are arguments of the command.
    own = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    return own[-2:] == ["-m", "hiermt"] or own[-1:] == ["-mhiermt"] or os.path.basename("".join(own[-1:])) == "hiermt"


def ends_the_process() -> bool:
    """Lets SIGINT end the process as if it were not Python. Nothing has begun yet that could be left half done.

    Returns:
        Whether it does; :func:`raises_again` takes it back.
    """
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not (plain and is_command_line() and threading.current_thread() is threading.main_thread()):
        return False
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


def raises_again() -> None:
    """Lets SIGINT raise :class:`KeyboardInterrupt`, if :func:`ends_the_process` changed that."""
    if CHANGED and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


CHANGED = ends_the_process()
