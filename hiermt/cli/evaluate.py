"""``hiermt evaluate``: a trained model on days that it has not seen, or one training for each of several spans."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
import torch

from hiermt import data
from hiermt.cli import artefacts, attention, options, overwrites, pictures, plain, record, scores, summary, walk_forward
from hiermt.cli.argument_types import path, whole
from hiermt.cli.experiment import measure
from hiermt.cli.kinds import Kind, task_name, true_classes
from hiermt.cli.output import log
from hiermt.cli.report import Report, png
from hiermt.cli.settings import Settings
from hiermt.cli.trained import Trained
from hiermt.data import DataError
from hiermt.data.labels import next_returns


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = options.add_command(
        commands,
        "evaluate",
        "measure a trained model on days it has not seen, or train and measure walk-forward",
        [
            "--model model --prices newer.csv",
            "--model model --prices newer.csv --out evaluation --json",
            "--walk-forward 5 --prices prices.csv --epochs 10 --out walk",
        ],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=path, metavar="DIR", help="the --out folder of a training")
    what.add_argument(
        "--walk-forward",
        type=whole(2),
        metavar="FOLDS",
        help="train for each of FOLDS test spans on the days before it; the options of train apply",
    )
    options.add_table(parser)
    parser.add_argument("--out", type=path, metavar="DIR", help="folder for report, metrics, picture and predictions")
    parser.add_argument(
        "--all-days",
        action="store_true",
        help="with --model: also the days that the training has seen, on which every figure flatters the model",
    )
    options.add_graph_files(Settings.add_options(parser, leave_out=("test",))["graph"])
    options.add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the command."""
    device = options.pick_device(args.device)
    if args.out is not None:
        artefacts.check_folder(args.out, artefacts.EVALUATION_FILES)
        overwrites.check_apart(args, ("--out", [args.out / name for name in artefacts.EVALUATION_FILES]))
    return _of_model(args, device) if args.model is not None else _walk_forward(args, device)


def _of_model(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    # The model has its own; an option that changes nothing must not seem to.
    ignored = [name for name, value in vars(Settings()).items() if getattr(args, name, value) != value]
    ignored += [name for name in ("adjacency", "sectors") if getattr(args, name) is not None]
    if ignored:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        raise ValueError(f"{names}: not with --model, whose training has set it; leave it out")
    trained = Trained.read(args.model, args.backend)
    table = options.read(args, trained.symbols)
    dataset = trained.dataset(table, device)
    first, seen = 0, trained.used_until
    if not args.all_days:
        if seen is None:
            raise DataError(
                f"{args.model}: does not tell which days it was trained on; train again, or give --all-days"
            )
        first = int(np.searchsorted(table.dates, np.datetime64(seen), side="right"))
    starts = range(first, dataset.num_windows - trained.horizon)
    if len(starts) < 2:
        raise DataError(
            f"the table ends on {table.dates[-1]}: it needs two windows of {trained.window} days and their labels"
            + ("" if args.all_days else f" after {seen}, the last day that the training used; --all-days takes all")
        )
    model = trained.model.to(device)
    found = trained.kind.decide(model, dataset, starts, trained.confidence, progress=True)
    days = slice(starts.start + trained.window - 1, starts.stop + trained.window - 1)
    returns = next_returns(table.close, trained.horizon)[:, days].t()
    truth = true_classes(table, trained.horizon, trained.threshold)[:, days].t()
    dates = [str(date) for date in table.dates[days]]
    if args.all_days and seen is not None and dates[0] <= seen:
        log.warning("days up to %s are among these, which the training has seen: the figures flatter the model", seen)
    page = Report(
        title="Evaluation" + (" on all days, those of the training included" if args.all_days else ""),
        scores=measure(
            trained.kind.name, found, truth, returns, dates, trained.symbols, trained.horizon, trained.threshold
        ),
        facts={"model": args.model, "used by the training until": seen},
        symbols=trained.symbols,
        dates=dates,
        unseen=not args.all_days,
        graph=dataset,
        attention=attention.mean_attention(model, dataset, starts) if trained.kind.decides else (),
    )
    result = {"model": str(args.model), "untouched_days_only": not args.all_days}
    return _finish(args, trained.kind, result, page, found, truth, returns)


def _walk_forward(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    if args.all_days:
        raise ValueError("--all-days: only with --model; every fold is measured on days after its training")
    settings, folds = Settings.of(args), args.walk_forward
    kind = Kind(task_name(settings))
    files = record.inputs(args)
    table = options.read(args)
    edges = None if args.adjacency is None else data.read_adjacency(args.adjacency, len(table.symbols))
    sectors = None if args.sectors is None else data.read_sectors(args.sectors)
    found = walk_forward.run(table, settings, folds, device, args.backend, edges=edges, sectors=sectors)
    described = record.describe(args, device, table.names, files)
    log.info("\n%s\n\nAll folds together:", walk_forward.table_of(found.folds))
    page = Report(
        title=f"Walk-forward evaluation, {folds} folds",
        scores=measure(
            kind.name,
            found.results,
            found.truth,
            found.returns,
            found.dates,
            table.symbols,
            settings.horizon,
            settings.threshold,
        ),
        facts={"folds": folds, "gap between training and test (days)": settings.horizon},
        symbols=table.symbols,
        dates=found.dates,
        record=described,
    )
    result = {"walk_forward": folds, "folds": found.folds, "run": described}
    return _finish(args, kind, result, page, found.results, found.truth, found.returns)


def _finish(
    args: argparse.Namespace,
    kind: Kind,
    result: dict[str, Any],
    page: Report,
    found: Any,
    truth: torch.Tensor,
    returns: torch.Tensor,
) -> dict[str, Any]:
    """Shows the figures, and writes the files where a folder was given."""
    scored, symbols = page.scores, tuple(page.symbols)
    result["test"] = scored
    span = scored["span"]
    log.info("\n%s days, %s to %s, %d stocks\n", f"{span['days']:,}", span["first"], span["last"], span["stocks"])
    log.info("%s", summary.text(scored) if kind.decides else plain.text(scored))
    if args.out is None:
        return result
    if kind.decides:
        confusion = png(lambda file: pictures.draw_confusion(scored, file, scores.span(scored)))
        page = dataclasses.replace(page, confusion=confusion)
        rows = artefacts.scored_rows(page.dates, symbols, found, truth, returns)
        written = artefacts.write_evaluation(args.out, page, dict(result), rows)
    else:
        rows = plain.rows(kind.name, page.dates, symbols, found, returns)
        text = plain.page(page.title, scored, page.facts, record=page.record)
        written = artefacts.write_plain_evaluation(args.out, kind.name, text, dict(result), rows)
    result["files"] = written
    log.info("\n%s", "\n".join(f"  {file}" for file in written))
    return result
