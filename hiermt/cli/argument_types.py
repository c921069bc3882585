"""Types of command line arguments: each turns a text into a value, or says in one sentence why it cannot."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path


def path(text: str) -> Path:
    """A path. An empty one, as from an unset variable, is refused: pathlib reads it as ``.``."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return Path(text)


def file_path(text: str) -> Path:
    """A path of a file."""
    if text.endswith(("/", os.sep)):
        raise argparse.ArgumentTypeError(f"expected the path of a file, got the folder {text!r}")
    return path(text)


def whole(least: int) -> Callable[[str], int]:
    """An integer of `least` or more that fits into 64 bits."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, got {text!r}")
        if number >= 2**63:
            raise argparse.ArgumentTypeError(f"expected a whole number below 2**63, got {text!r}")
        return number

    return parse


def one_of(*names: str) -> Callable[[str], str]:
    """One of some names."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, got {text!r}")
        return text

    return parse


def real(low: float, high: float) -> Callable[[str], float]:
    """A number in ``[low, high]``."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, got {text!r}")
        return number

    return parse
