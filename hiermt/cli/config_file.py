"""Options from a file: a JSON object by name, or the record of a training."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hiermt.data import DataError
from hiermt.io.tensor_files import parse_json

_MOST_BYTES = 1 << 20


def expand(argv: Sequence[str], commands: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """Puts the options of the file that ``--config`` names in front of those of the command line.

    The last of two equal options counts, so the command line comes before the file. The names are those of the options,
    with ``_`` or ``-``; ``true`` and ``false`` set a switch, ``null`` is the default. The record of a training
    (``run.json``) has them under ``options``; there, options that another command lacks are left out.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is not such an object, or names an option that the command lacks.
    """
    parser = commands.get(argv[0]) if argv else None
    file = _named(argv[1:])
    if parser is None or file is None:
        return list(argv)
    options, recorded = _read(file)
    known = {option: action for action in parser._actions for option in action.option_strings}
    given = {argument.partition("=")[0] for argument in argv[1:]}
    arguments = []
    for name, value in options.items():
        option = _option(name, known)
        if option is None:
            if recorded is not None and recorded != argv[0]:
                continue
            close = difflib.get_close_matches(f"--{name}", known, 1)
            hint = f"; did you mean {close[0][2:]!r}?" if close else f"; hiermt {argv[0]} --help lists them"
            raise DataError(f"{file}: {argv[0]} has no option {name!r}{hint}")
        if not _excluded(parser, known[option], given, known):
            arguments += _arguments(file, name, option, known[option], value)
    return [argv[0], *arguments, *argv[1:]]


def _named(arguments: Sequence[str]) -> Path | None:
    """The file of the last ``--config``; a missing value is left to the parser."""
    found = None
    for i, argument in enumerate(arguments):
        if argument == "--":
            break
        name, equals, value = argument.partition("=")
        if name == "--config":
            found = value if equals else (arguments[i + 1] if i + 1 < len(arguments) else None)
    return Path(found) if found and found.strip() and "\0" not in found else None


def _read(file: Path) -> tuple[dict[str, Any], str | None]:
    """The options, and the command that recorded them if it is the record of a training."""
    if not file.is_file():
        raise FileNotFoundError(f"--config {file}: there is no such file")
    if file.stat().st_size > _MOST_BYTES:
        raise DataError(f"--config {file}: is too large for a file of options")
    try:
        found = parse_json(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"--config {file}: not valid JSON ({error})") from None
    recorded = None
    if isinstance(found, dict) and isinstance(found.get("options"), dict):
        recorded, found = str(found.get("command")), found["options"]
    if not isinstance(found, dict):
        raise DataError(f'--config {file}: expected a JSON object such as {{"epochs": 10}}, got {type(found).__name__}')
    return found, recorded


def _option(name: str, known: Mapping[str, argparse.Action]) -> str | None:
    """The option of a name, which may be that of its setting; ``--config`` and ``--help`` are none."""
    option = f"--{name.replace('_', '-')}"
    if option not in known:
        options = (action.option_strings[0] for action in known.values() if action.dest == name)
        option = next(options, option)
    return option if option in known and option not in ("--config", "--help") else None


def _excluded(
    parser: argparse.ArgumentParser, action: argparse.Action, given: set[str], known: Mapping[str, argparse.Action]
) -> bool:
    """Whether the command line has another option of the same group, of which only one may be given."""
    chosen = {id(known[option]) for option in given if option in known}
    return any(
        any(id(other) in chosen and other is not action for other in group._group_actions)
        for group in parser._mutually_exclusive_groups
        if action in group._group_actions
    )


def _arguments(file: Path, name: str, option: str, action: argparse.Action, value: Any) -> list[str]:
    if value is None:
        return []
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise DataError(f"--config {file}: {name!r} is a switch; expected true or false, got {value!r}")
        off = f"--no-{option[2:]}"
        return [option] if value else [off] if off in action.option_strings else []
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f"--config {file}: {name!r}: expected a text or a number, got {value!r}")
    return [f"{option}={value}"]
