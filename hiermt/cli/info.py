"""``python -m hiermt info``: the build, and what this machine can run of it."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("info", help="the build, its targets, and what is used on this machine")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from hiermt.native import info

    return int(info.main() or 0)
