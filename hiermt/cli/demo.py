"""``hiermt demo``: trains and evaluates on real prices in about a minute."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from hiermt import data
from hiermt.cli import artefacts, options, overwrites, record, speed
from hiermt.cli.argument_types import path, real, whole
from hiermt.cli.experiment import Experiment
from hiermt.cli.output import log
from hiermt.cli.settings import Settings
from hiermt.cli.train import finish
from hiermt.data.sp500 import sp500_path


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = options.add_command(
        commands,
        "demo",
        "train and evaluate on 20 S&P 500 stocks, and compare speed with PyG",
        ["", "--days 1000 --seconds 10", "--config artifacts/demo/run.json --out again"],
    )
    parser.add_argument(
        "--out",
        type=path,
        default=Path("artifacts/demo"),
        metavar="DIR",
        help="folder for the results (artifacts/demo)",
    )
    parser.add_argument(
        "--seconds",
        type=real(0, 3600),
        default=60,
        help="target seconds of training, from which the number of epochs follows; 0 for no target (60)",
    )
    parser.add_argument("--epochs", type=whole(1), default=20, help="most epochs (20)")
    parser.add_argument("--days", type=whole(1), metavar="N", help="use the last N days only (default: all 8,313)")
    options.add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the command."""
    device = options.pick_device(args.device)
    artefacts.check_folder(args.out)
    overwrites.check_apart(args, ("--out", [args.out / name for name in artefacts.FILES]))
    files = record.inputs(args, prices=sp500_path())
    prices = data.load_sp500()
    if args.days is not None:
        prices = dataclasses.replace(prices, dates=prices.dates[-args.days :], close=prices.close[:, -args.days :])
    log.info("%s\n%s\n", options.describe_prices(prices), data.LIMITS)
    table = data.compute_features(prices)
    settings = Settings(epochs=args.epochs)
    experiment = Experiment.prepare(table, settings, sectors=data.SP500_SECTORS, device=device)
    log.info("%d directed edges: correlation above %g", experiment.dataset.edge_index.size(1), settings.correlation)
    log.info("%s", options.describe_split(experiment.split, table.dates))

    model = experiment.model(args.backend)
    batch = next(iter(experiment.loader(experiment.split.train, shuffle=True)))
    log.info(
        "\nSpeed, %s, %d threads, on one batch of %d windows x %d stocks x %d days:\n",
        speed.backend_of(model, device),
        torch.get_num_threads(),
        *batch.x.shape[:3],
    )
    text, timings = speed.comparison(model, batch, seconds=0.5)
    log.info("%s", text)
    steps = len(experiment.loader(experiment.split.train, shuffle=True))
    epochs = fitting_epochs(timings["training step"].ours, steps, args)
    experiment.settings = dataclasses.replace(settings, epochs=epochs)
    windows = f"{len(experiment.split.train):,}"
    log.info("\nTraining for %d epochs at most, %s windows each, on %s", epochs, windows, device)
    # The number of epochs depends on the speed of the machine; without a target it is that of the option.
    described = record.describe(args, device, table.names, files, epochs=epochs, seconds=0)
    result = finish(args, experiment, model, described)
    log.info(
        "\nOpen %s in a browser. Next, decide for the day after the last one, or train on your own prices:\n"
        "  hiermt predict --model %s --prices %s\n  hiermt train --prices yours.csv --out model",
        args.out / artefacts.REPORT,
        args.out,
        sp500_path(),
    )
    return {**result, "speed": {name: dataclasses.asdict(timing) for name, timing in timings.items()}}


def fitting_epochs(step: float, steps: int, args: argparse.Namespace) -> int:
    """Epochs that fit into ``--seconds`` (0: all), from the time of a step plus a fifth for validation and loading."""
    if not args.seconds:
        return int(args.epochs)
    return max(1, min(int(args.epochs), int(args.seconds / (1.2 * step * steps))))
