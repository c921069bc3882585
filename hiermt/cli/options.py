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
    """An argument type: a path; an empty one, as of a variable that is not set, is not the current folder."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return Path(text)


def file_path(text: str) -> Path:
    """An argument type: a path of a file."""
    if text.endswith(("/", os.sep)):
        raise argparse.ArgumentTypeError(f"expected the path of a file, got the folder {text!r}")
    return path(text)


def whole(least: int) -> Callable[[str], int]:
    """An argument type: a whole number of at least `least` that fits into 64 bits."""

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
    """Adds where and how to compute."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: the GPU if there is one)")
    parser.add_argument(
        "--backend",
        choices=("auto", "native", "reference"),
        default="auto",
        help="compiled kernels or plain PyTorch (default: the fastest that is there)",
    )


def pick_device(name: str) -> torch.device:
    """The device asked for; ``auto`` is the GPU if there is one.

    Raises:
        ValueError: there is no such device here.
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
    """Adds where prices or features come from."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prices",
        type=file_path,
        metavar="FILE",
        help="CSV or Parquet: Symbol, Date, Close, perhaps Open, High, Low; or Date and a column of closes a stock",
    )
    source.add_argument(
        "--features",
        type=file_path,
        metavar="FILE",
        help="CSV or Parquet with ready features: Symbol, Date, Close and one column a feature",
    )
    parser.add_argument(
        "--max-gap",
        type=whole(0),
        default=5,
        metavar="DAYS",
        help="missing days in a row over which the last close is carried (default: 5)",
    )


def read(args: argparse.Namespace, symbols: tuple[str, ...] | None = None) -> FeatureTable:
    """The table that --prices or --features names."""
    if args.features is not None:
        return read_features(args.features, symbols=symbols)
    return compute_features(read_prices(args.prices, max_gap=args.max_gap, symbols=symbols))


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the choices of a training."""
    default = Settings()
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=whole(1), default=default.epochs, help=f"most epochs ({default.epochs})")
    group.add_argument(
        "--patience",
        type=whole(1),
        default=default.patience,
        help=f"epochs without a lower validation loss before stopping ({default.patience})",
    )
    group.add_argument(
        "--batch-size", type=whole(1), default=default.batch_size, help=f"windows ({default.batch_size})"
    )
    group.add_argument(
        "--lr", type=real(0, 10), default=default.learning_rate, help=f"of Adam ({default.learning_rate:g})"
    )
    group.add_argument("--seed", type=whole(0), default=default.seed, help=f"of weights and order ({default.seed})")
    group = parser.add_argument_group("data")
    group.add_argument(
        "--window", type=whole(1), default=default.window, help=f"days the model sees ({default.window})"
    )
    group.add_argument(
        "--threshold",
        type=real(0, 1),
        default=default.threshold,
        help=f"a return beyond it is a signal ({default.threshold})",
    )
    group.add_argument(
        "--confidence",
        type=real(0, 1),
        default=default.confidence,
        help=f"Down or Up needs P(signal) above it ({default.confidence})",
    )
    group.add_argument("--validation", type=real(0, 0.9), default=default.validation, help="share (0.1)")
    group.add_argument("--test", type=real(0.01, 0.9), default=default.test, help="share (0.2)")
    group = parser.add_argument_group("graph")
    group.add_argument(
        "--adjacency", type=file_path, metavar="FILE", help=".npy with weights, in the order of the stocks"
    )
    group.add_argument(
        "--correlation",
        type=real(-1, 0.999),
        default=default.correlation,
        help=f"stocks that correlate by more are neighbours ({default.correlation})",
    )
    group.add_argument("--sectors", type=file_path, metavar="FILE", help="table with Symbol and Sector")
    group.add_argument(
        "--sector-bonus",
        type=real(0, 2),
        default=default.sector_bonus,
        help=f"added to the correlation within a sector ({default.sector_bonus})",
    )


def settings(args: argparse.Namespace) -> Settings:
    """The choices made on the command line."""
    return Settings(
        window=args.window,
        threshold=args.threshold,
        confidence=args.confidence,
        correlation=args.correlation,
        sector_bonus=args.sector_bonus,
        validation=args.validation,
        test=args.test,
        batch_size=args.batch_size,
        epochs=args.epochs,
        patience=args.patience,
        learning_rate=args.lr,
        seed=args.seed,
    )


def describe_prices(prices: Prices) -> str:
    """One line on what was read."""
    kind = "open, high, low and close" if prices.has_bars else "closing prices only"
    return f"{len(prices.symbols)} stocks, {len(prices.dates):,} days {prices.dates[0]} to {prices.dates[-1]}, {kind}"


def describe_split(split: Split, dates: Any) -> list[str]:
    """One line for each part of a split."""
    lines = []
    for name in ("train", "validation", "test"):
        part: range = getattr(split, name)
        if part:
            first, last = dates[part.start], dates[part.stop - 2 + split.window]
            lines.append(f"  {name:<11}{len(part):>6,} windows  {first} to {last}")
    lines.append(f"  {split.gap} days between the parts are left out, so that no part sees another's labels")
    return lines
