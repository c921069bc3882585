"""``python -m hiermt predict --model DIR --prices F``."""

from __future__ import annotations

import argparse
from typing import Any

from hiermt.cli import artefacts, options
from hiermt.cli.experiment import decide
from hiermt.cli.trained import Trained
from hiermt.data import DataError
from hiermt.io.files import check_writable


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("predict", help="Down, Neutral or Up for the day after the last one of a table")
    parser.add_argument(
        "--model", type=options.path, required=True, metavar="DIR", help="the --out folder of a training"
    )
    options.add_table(parser)
    parser.add_argument("--days", type=options.whole(1), default=1, help="decide for the last DAYS days (default: 1)")
    parser.add_argument(
        "--rolling", action="store_true", help="decide for every day with a full window, as for a backtest"
    )
    parser.add_argument("--out", type=options.file_path, metavar="FILE", help="also write a CSV")
    parser.add_argument(
        "--confidence",
        type=options.real(0, 1),
        help="P(signal) above which to decide Down or Up (default: as trained)",
    )
    options.add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    device = options.pick_device(args.device)
    if args.out is not None:
        check_writable(args.out)
    trained = Trained.read(args.model, args.backend)
    table = options.read(args, trained.symbols)
    dataset = trained.dataset(table, device)
    days = dataset.num_windows if args.rolling else args.days
    if days > dataset.num_windows:
        raise DataError(
            f"--days {days}: the table has {dataset.num_windows} days with a full window of {trained.window}"
        )
    starts = range(dataset.num_windows - days, dataset.num_windows)
    confidence = trained.confidence if args.confidence is None else args.confidence
    model = trained.model.to(device)
    decisions = decide(model, dataset, starts, confidence, progress=True)
    dates = table.dates[starts.start + trained.window - 1 :]
    if args.out is not None:
        artefacts.write_predictions(args.out, artefacts.prediction_rows(dates, trained.symbols, decisions))
    print(
        f"Close of {dates[-1]}, for {trained.horizon} trading day(s) later; a move is more than {trained.threshold:.2%}"
    )
    print(f"{'symbol':<10}{'decision':<10}{'confidence':>10}{'P(signal)':>11}{'P(up)':>8}")
    rows = list(artefacts.prediction_rows(dates, trained.symbols, decisions))[-len(trained.symbols) :]
    for _, symbol, decision, sure, signal, up in rows:
        print(f"{symbol:<10}{decision:<10}{float(sure):>10.1%}{float(signal):>11.1%}{float(up):>8.1%}")
    if args.out is not None:
        print(f"\n{args.out}: {len(dates):,} days x {len(trained.symbols)} stocks")
    return 0
