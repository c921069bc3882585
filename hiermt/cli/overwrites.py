"""No command writes over a file that it reads, over one of the model's training, nor one of its files over another."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from pathlib import Path

from hiermt.cli.artefacts import FILES
from hiermt.cli.record import INPUTS
from hiermt.data import DataError


def check_apart(args: argparse.Namespace, *written: tuple[str, Collection[Path]]) -> None:
    """Compares the files that a command will write with those that it reads or must keep, whatever links lead to them.

    Args:
        args (Namespace): parsed arguments, whose inputs are read.
        written: options, each with the files that it writes.

    Raises:
        DataError: two of them are one file.
    """
    given = [(f"--{name}", getattr(args, name, None)) for name in (*INPUTS, "config")]
    taken = {os.path.realpath(path): f"{option} {path}, which is read" for option, path in given if path is not None}
    if (model := getattr(args, "model", None)) is not None:
        # Metrics and report of a training are as much its result as the weights.
        taken |= {os.path.realpath(model / name): f"{name} of the training --model {model}" for name in FILES}
    for option, paths in written:
        for path in paths:
            if (other := taken.get(os.path.realpath(path))) is not None:
                raise DataError(f"{option}: would write over {other}; give another path")
            taken[os.path.realpath(path)] = f"{path}, a file of {option}"
