"""``hiermt predict --model DIR --prices F``."""

from __future__ import annotations

import argparse
from typing import Any

from hiermt.cli import artefacts, options, output, overwrites, plain
from hiermt.cli.argument_types import file_path, real, whole
from hiermt.cli.output import log
from hiermt.cli.trained import Trained
from hiermt.data import DataError
from hiermt.data._errors import some
from hiermt.io.files import check_writable

MEANING = (
    "P(down), P(neutral) and P(up) are the model's probabilities of the three outcomes. The decision asks for a signal "
    "first (P(signal) = 1 - P(neutral)) and then for the likelier direction, so it can differ from the likeliest "
    "outcome. Confidence is the probability of the head that decided alone, at least 50% whatever the model knows."
)

MEANING_OF_CLASSES = "The decision is the likeliest of the three outcomes, and the confidence its probability."


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = options.add_command(
        commands,
        "predict",
        "decide Down, Neutral or Up for the day after the last one of a table",
        [
            "--model model --prices prices.csv",
            "--model model --prices prices.csv --rolling --out decisions.csv",
            "--model model --prices prices.csv --days 5 --json",
        ],
    )
    options.add_model(parser)
    options.add_table(parser)
    span = parser.add_mutually_exclusive_group()
    span.add_argument("--days", type=whole(1), default=1, help="decide for the last DAYS days (default: 1)")
    span.add_argument(
        "--rolling", action="store_true", help="decide for every day with a full window, as for a backtest"
    )
    parser.add_argument("--out", type=file_path, metavar="FILE", help="also write a CSV")
    parser.add_argument(
        "--confidence", type=real(0, 1), help="P(signal) above which to decide Down or Up (default: as trained)"
    )
    options.add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the command."""
    device = options.pick_device(args.device)
    if args.out is not None:
        check_writable(args.out)
        overwrites.check_apart(args, ("--out", [args.out]))
    trained = Trained.read(args.model, args.backend)
    if args.confidence is not None and trained.kind.name != "two-headed":
        raise ValueError(
            f"--confidence: P(signal) above which to decide is of the two-headed task, not of {trained.kind.name}"
        )
    table = options.read(args, trained.symbols)
    dataset = trained.dataset(table, device)
    days = dataset.num_windows if args.rolling else args.days
    if days > dataset.num_windows:
        raise DataError(
            f"--days {days}: expected at most the table's {dataset.num_windows} days with a full window of "
            f"{trained.window}"
        )
    starts = range(dataset.num_windows - days, dataset.num_windows)
    confidence = trained.confidence if args.confidence is None else args.confidence
    model = trained.model.to(device)
    found = trained.kind.decide(model, dataset, starts, confidence, progress=True)
    dates = table.dates[starts.start + trained.window - 1 :]
    if trained.kind.decides:
        rows, header = list(artefacts.prediction_rows(dates, trained.symbols, found)), artefacts.HEADER
    else:
        name = trained.kind.name
        rows, header = list(plain.rows(name, dates, trained.symbols, found)), plain.HEADERS[name]
    if args.out is not None:
        artefacts.write_predictions(args.out, rows, header)
    log.info(
        "Close of %s, for %d trading day(s) later; a move is more than %.2f%%",
        dates[-1],
        trained.horizon,
        100 * trained.threshold,
    )
    last = [row for row in rows if row[0] == dates[-1]]
    if trained.kind.decides:
        shown = [
            [symbol, decision, *(f"{float(value):.1%}" for value in numbers[1:4]), f"{float(numbers[0]):.1%}"]
            for _, symbol, decision, *numbers in last
        ]
        columns = ("symbol", "decision", "P(down)", "P(neutral)", "P(up)", "confidence")
        meaning = MEANING if trained.kind.name == "two-headed" else MEANING_OF_CLASSES
        log.info("%s\n\n%s", output.table(columns, shown, left=2), output.prose(meaning))
    else:
        log.info("%s", output.table(header[1:], [list(row[1:]) for row in last], left=1))
    here = {row[1] for row in last}
    absent = [symbol for symbol in trained.symbols if symbol not in here]
    if absent:
        log.info("\nabsent on that day, so without a decision: %s", some(absent))
    if args.out is not None:
        log.info("\n%s: %s rows of %s days", args.out, f"{len(rows):,}", f"{len(dates):,}")
    texts = ("symbol", "prediction")
    named = [
        {name: str(cell) if name in ("date", *texts) else float(cell) for name, cell in zip(header, row, strict=True)}
        for row in rows
    ]
    return {
        "horizon": trained.horizon,
        "threshold": trained.threshold,
        "p_signal_above": confidence,
        "decisions": named,
        "out": args.out,
    }
