"""``hiermt completion bash``: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse
from typing import Any

from hiermt.cli import options
from hiermt.cli.output import log
from hiermt.data.optional import import_optional

# What an option of this metavar is completed with.
_PATHS = {"FILE": "FILE", "DIR": "DIRECTORY"}


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = options.add_command(
        commands,
        "completion",
        "print a script that completes commands and options in a shell",
        ["bash > ~/.local/share/bash-completion/completions/hiermt", "zsh > ~/.zfunc/_hiermt"],
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="shell that will read the script")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the command."""
    shtab = import_optional("shtab", "completing a shell")
    for parser in _with_commands(args.parser):
        for action in parser._actions:
            if action.metavar in _PATHS:
                action.complete = getattr(shtab, _PATHS[action.metavar])
    script = shtab.complete(args.parser, shell=args.shell)
    log.info("%s", script)
    return {"shell": args.shell, "script": script}


def _with_commands(parser: Any) -> list[Any]:
    """The parser and those of its commands."""
    of_commands = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(command for choices in of_commands for command in choices.values())]
