"""``python -m hiermt info``: what is built, for what, and what runs here."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("info", help="what is built, for what, and what is used on this machine")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints it."""
    from hiermt.native import info

    return int(info.main() or 0)
