"""Options and steps that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hiermt.cli.experiment import Settings
from hiermt.data import FeatureTable, Prices, Split, compute_features, read_features, read_prices


def path(text: str) -> Path:
    """An argument type: a path. An empty one, as from an unset variable, is refused: pathlib reads it as ``.``."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return Path(text)


def file_path(text: str) -> Path:
    """An argument type: a path of a file."""
    if text.endswith(("/", os.sep)):
        raise argparse.ArgumentTypeError(f"expected the path of a file, got the folder {text!r}")
    return path(text)


def whole(least: int) -> Callable[[str], int]:
    """An argument type: an integer of `least` or more that fits into 64 bits."""

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


def real(low: float, high: float) -> Callable[[str], float]:
    """An argument type: a number in ``[low, high]``."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, got {text!r}")
        return number

    return parse


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds --device and --backend."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: the GPU if there is one)")
    parser.add_argument(
        "--backend",
        choices=("auto", "native", "reference"),
        default="auto",
        help="compiled kernels or plain PyTorch (default: the fastest available)",
    )


def pick_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the GPU if there is one.

    Raises:
        ValueError: the device is not available, or computes nothing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not usable here ({str(error).splitlines()[0]}); use cpu or auto") from None
    if device.type == "meta":
        raise ValueError(f"--device {name}: computes nothing; use cpu or auto")
    return device


def add_table(parser: argparse.ArgumentParser) -> None:
    """Adds --prices and --features, one of which is required, and --max-gap."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prices",
        type=file_path,
        metavar="FILE",
        help="CSV or Parquet: Symbol, Date, Close, optionally Open, High, Low; or Date and closes, a column per stock",
    )
    source.add_argument(
        "--features",
        type=file_path,
        metavar="FILE",
        help="CSV or Parquet with ready features: Symbol, Date, Close and one column per feature",
    )
    parser.add_argument(
        "--max-gap",
        type=whole(0),
        default=5,
        metavar="DAYS",
        help="most missing days in a row to fill with the last close (default: 5)",
    )


def read(args: argparse.Namespace, symbols: tuple[str, ...] | None = None) -> FeatureTable:
    """The table that --prices or --features names."""
    if args.features is not None:
        return read_features(args.features, symbols=symbols)
    return compute_features(read_prices(args.prices, max_gap=args.max_gap, symbols=symbols))


# Group, name of the setting, type and help of each option.
_SETTINGS = (
    ("training", "epochs", whole(1), "most epochs"),
    ("training", "patience", whole(1), "epochs without a lower validation loss before stopping"),
    ("training", "batch_size", whole(1), "windows per batch"),
    ("training", "learning_rate", real(0, 10), "learning rate of Adam"),
    ("training", "seed", whole(0), "seed of weights and order"),
    ("data", "window", whole(1), "days the model sees"),
    ("data", "threshold", real(0, 1), "absolute return above which a day is a signal"),
    ("data", "confidence", real(0, 1), "P(signal) above which to decide Down or Up"),
    ("data", "validation", real(0, 0.9), "share of the windows"),
    ("data", "test", real(0.01, 0.9), "share of the windows"),
    ("graph", "correlation", real(-1, 0.999), "correlation of returns above which two stocks are neighbours"),
    ("graph", "sector_bonus", real(0, 2), "added to the correlation within a sector"),
)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the settings of a training and the files of its graph."""
    groups = {title: parser.add_argument_group(title) for title in ("training", "data", "graph")}
    for title, name, kind, text in _SETTINGS:
        option = "--lr" if name == "learning_rate" else f"--{name.replace('_', '-')}"
        default = getattr(Settings(), name)
        metavar, text = name.rpartition("_")[2].upper(), f"{text} ({default:g})"
        groups[title].add_argument(option, dest=name, metavar=metavar, type=kind, default=default, help=text)
    groups["graph"].add_argument(
        "--adjacency", type=file_path, metavar="FILE", help=".npy with weights, in the order of the stocks"
    )
    groups["graph"].add_argument("--sectors", type=file_path, metavar="FILE", help="table with Symbol and Sector")


def settings(args: argparse.Namespace) -> Settings:
    """The settings given on the command line."""
    return Settings(**{name: getattr(args, name) for _, name, _, _ in _SETTINGS})


def describe_prices(prices: Prices) -> str:
    """One line that describes a price table."""
    kind = "open, high, low and close" if prices.has_bars else "closing prices only"
    return f"{len(prices.symbols)} stocks, {len(prices.dates):,} days {prices.dates[0]} to {prices.dates[-1]}, {kind}"


def describe_split(split: Split, dates: Any) -> list[str]:
    """One line per part of a split, and one on the gap."""
    lines = []
    for name in ("train", "validation", "test"):
        part: range = getattr(split, name)
        if part:
            first, last = dates[part.start], dates[part.stop - 2 + split.window]
            lines.append(f"  {name:<11}{len(part):>6,} windows  {first} to {last}")
    lines.append(f"  {split.gap} days between the parts are left out: no label of a part reads a day of another")
    return lines
