"""Options and steps that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from hiermt.cli.argument_types import file_path, path, whole
from hiermt.data import FeatureTable, Prices, Split, compute_features, read_features, read_prices

_MAX_GAP = 5


class Parser(argparse.ArgumentParser):
    """A parser that ends with one sentence and exit code 2, and knows every option by its whole name only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> Any:
        """Prints the sentence and ends the process."""
        self.exit(2, f"error: {' '.join(message.split())}; see {self.prog} --help\n")


def add_command(commands: Any, name: str, text: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """Adds a command with its help, examples of calls, and the options of every command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog="examples:\n" + "\n".join(f"  hiermt {name} {example}".rstrip() for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_argument_group("input and output")
    group.add_argument("--json", action="store_true", help="print the result as JSON, and everything else to stderr")
    group.add_argument(
        "--config",
        type=file_path,
        metavar="FILE",
        help="JSON with options by name, or the run.json of a training; options of the command line come before it",
    )
    return parser


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
    """Adds --prices and --features, one of which is required, --max-gap and --missing."""
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
        default=_MAX_GAP,
        metavar="DAYS",
        help=f"most missing days in a row to fill with the last close (default: {_MAX_GAP})",
    )
    parser.add_argument(
        "--missing",
        choices=("fill", "keep"),
        default="fill",
        help="fill gaps and cut to the days that all stocks share, or keep stocks that list late, leave or miss days: "
        "they are absent there (default: fill)",
    )


def add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --model, the folder of a training."""
    parser.add_argument("--model", type=path, required=required, metavar="DIR", help="the --out folder of a training")


def add_graph_files(group: Any) -> None:
    """Adds --adjacency and --sectors."""
    group.add_argument(
        "--adjacency", type=file_path, metavar="FILE", help=".npy with weights, in the order of the stocks"
    )
    group.add_argument("--sectors", type=file_path, metavar="FILE", help="table with Symbol and Sector")


def read(args: argparse.Namespace, symbols: tuple[str, ...] | None = None) -> FeatureTable:
    """The table that --prices or --features names.

    Raises:
        ValueError: --max-gap was given where no gap is filled.
    """
    keep = args.missing == "keep"
    if args.max_gap != _MAX_GAP and (keep or args.features is not None):
        beside = "--missing keep" if keep else "--features"
        raise ValueError(f"--max-gap {args.max_gap}: no gap is filled with {beside}; leave it out")
    if args.features is not None:
        return read_features(args.features, symbols=symbols, missing="keep" if keep else "refuse")
    return compute_features(read_prices(args.prices, max_gap=args.max_gap, symbols=symbols, missing=args.missing))


def describe_prices(prices: Prices) -> str:
    """One line that describes a price table."""
    kind = "open, high, low and close" if prices.has_bars else "closing prices only"
    return f"{len(prices.symbols)} stocks, {len(prices.dates):,} days {prices.dates[0]} to {prices.dates[-1]}, {kind}"


def describe_split(split: Split, dates: Any) -> str:
    """One line per part of a split, and one on the gap."""
    lines = []
    for name in ("train", "validation", "test"):
        part: range = getattr(split, name)
        if part:
            first, last = dates[part.start], dates[part.stop - 2 + split.window]
            lines.append(f"  {name:<11}{len(part):>6,} windows  {first} to {last}")
    lines.append(f"  {split.gap} days between the parts are left out: no label of a part reads a day of another")
    return "\n".join(lines)
