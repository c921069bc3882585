"""``hiermt info``: the build, and what this machine can run of it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from hiermt.cli import options
from hiermt.cli.output import log


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = options.add_command(
        commands, "info", "show the build, its targets, and what is used on this machine", ["", "--json"]
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the command."""
    from hiermt.native import info

    found = info.collect()
    log.info("%s", info.format(found))
    return dataclasses.asdict(found)
