"""The settings of a training: defaults, types and help in one class, from which the options are made."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hiermt.cli.argument_types import one_of, real, whole
from hiermt.data import CORRELATION, THRESHOLD

NETWORKS = ("hierarchical", "multitask", "tgcn", "a3tgcn")
TASKS = ("two-headed", "several", "classes", "binary", "regression")


def _setting(
    default: Any, group: str, text: str, kind: Callable[[str], Any] | None = None, flag: str | None = None
) -> Any:
    """A field with its option: title of the group, help, type of the argument (none for a switch), and name."""
    return dataclasses.field(default=default, metadata={"group": group, "help": text, "type": kind, "flag": flag})


@dataclass(frozen=True)
class Settings:
    """Settings of a training. Each field is an option of the same name, with ``-`` for ``_``."""

    epochs: int = _setting(30, "training", "most epochs", whole(1))
    patience: int = _setting(8, "training", "epochs without a lower validation loss before stopping", whole(1))
    batch_size: int = _setting(32, "training", "windows per batch", whole(1))
    learning_rate: float = _setting(2e-3, "training", "learning rate of Adam", real(0, 10), "--lr")
    seed: int = _setting(0, "training", "seed of weights and order", whole(0))
    window: int = _setting(25, "data", "days the model sees", whole(1))
    horizon: int = _setting(1, "data", "trading days from the last day of a window to the price of its label", whole(1))
    threshold: float = _setting(THRESHOLD, "data", "absolute return above which a day is a signal", real(0, 1))
    confidence: float = _setting(0.5, "data", "P(signal) above which to decide Down or Up", real(0, 1))
    validation: float = _setting(0.1, "data", "share of the windows that choose the epoch; 0 for none", real(0, 0.9))
    test: float = _setting(0.2, "data", "share of the windows that are only evaluated", real(0.01, 0.9))
    correlation: float = _setting(
        CORRELATION, "graph", "correlation of returns above which two stocks are neighbours", real(-1, 0.999)
    )
    sector_bonus: float = _setting(0.1, "graph", "added to the correlation within a sector", real(0, 2))
    network: str = _setting("hierarchical", "model", "hierarchical, multitask, tgcn or a3tgcn", one_of(*NETWORKS))
    task: str = _setting(
        "auto",
        "model",
        "two-headed (hierarchical, multitask), several (multitask), or classes, binary, regression (tgcn, a3tgcn); "
        "auto is the first of a network",
        one_of("auto", *TASKS),
    )
    hidden: int = _setting(16, "model", "hidden channels", whole(1))
    layers: int = _setting(2, "model", "T-GCN layers", whole(1))
    gcn: bool = _setting(False, "model", "GCN convolutions in place of graph attention")

    @classmethod
    def of(cls, args: argparse.Namespace) -> Settings:
        """The settings that were parsed; a command that lacks an option gets its default."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(args, name) for name in names if hasattr(args, name)})

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
        """Adds an option for each field; returns the groups by title."""
        groups: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            group, text, kind, flag = (field.metadata[key] for key in ("group", "help", "type", "flag"))
            if field.name in leave_out:
                continue
            if group not in groups:
                groups[group] = parser.add_argument_group(group)
            flag = flag or f"--{field.name.replace('_', '-')}"
            if kind is None:
                action = argparse.BooleanOptionalAction
                groups[group].add_argument(flag, dest=field.name, action=action, default=field.default, help=text)
                continue
            groups[group].add_argument(
                flag,
                dest=field.name,
                metavar=field.name.rpartition("_")[2].upper(),
                type=kind,
                default=field.default,
                help=f"{text} ({field.default if isinstance(field.default, str) else format(field.default, 'g')})",
            )
        return groups
