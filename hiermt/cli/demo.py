"""``python -m hiermt demo``: trains and evaluates on real prices in about a minute."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from hiermt import data
from hiermt.cli import artefacts, options, speed
from hiermt.cli.experiment import Experiment, Settings
from hiermt.cli.train import finish
from hiermt.data.sp500 import sp500_path
from hiermt.nn import TGCN_HierarchicalMT


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("demo", help="train and evaluate on 20 S&P 500 stocks, and compare speed with PyG")
    parser.add_argument(
        "--out",
        type=options.path,
        default=Path("artifacts/demo"),
        metavar="DIR",
        help="folder for the results (artifacts/demo)",
    )
    parser.add_argument(
        "--seconds",
        type=options.real(1, 3600),
        default=60,
        help="target seconds of training, from which the number of epochs follows (60)",
    )
    parser.add_argument("--epochs", type=options.whole(1), default=20, help="most epochs (20)")
    parser.add_argument(
        "--days", type=options.whole(1), metavar="N", help="use the last N days only (default: all 8,313)"
    )
    options.add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    device = options.pick_device(args.device)
    artefacts.check_folder(args.out)
    prices = data.load_sp500()
    if args.days is not None:
        prices = dataclasses.replace(prices, dates=prices.dates[-args.days :], close=prices.close[:, -args.days :])
    print(options.describe_prices(prices))
    print(f"{data.LIMITS}\n")
    table = data.compute_features(prices)
    settings = Settings()
    experiment = Experiment.prepare(table, settings, sectors=data.SP500_SECTORS, device=device)
    print(f"{experiment.dataset.edge_index.size(1)} directed edges: correlation above {settings.correlation}")
    print(*options.describe_split(experiment.split, table.dates), sep="\n")

    torch.manual_seed(settings.seed)
    model = TGCN_HierarchicalMT(len(table.names), layout="NTF", feature_names=table.names, backend=args.backend).to(
        device
    )
    batch = next(iter(experiment.loader(experiment.split.train, shuffle=True)))
    print(f"\nSpeed, {speed.backend_of(model, device)}, {torch.get_num_threads()} threads, on one batch of")
    print(f"{batch.x.size(0)} windows x {batch.x.size(1)} stocks x {batch.x.size(2)} days:")
    step = speed.print_comparison(model, batch, seconds=0.5, indent="  ")
    epochs = fitting_epochs(step, len(experiment.loader(experiment.split.train, shuffle=True)), args)
    print(f"\nTraining for {epochs} epochs at most, {len(experiment.split.train):,} windows each, on {device}")
    finish(experiment, model, epochs, args.out)
    print(
        "\nPictures: curves.png and confusion.png. Next, decide for the day after the last one, or train on your own:"
    )
    print(f"  python -m hiermt predict --model {args.out} --prices {sp500_path()}")
    print("  python -m hiermt train --prices yours.csv --out model")
    return 0


def fitting_epochs(step: float, steps: int, args: argparse.Namespace) -> int:
    """Epochs that fit into ``--seconds``, from the time of one step plus a fifth for validation and loading."""
    return max(1, min(int(args.epochs), int(args.seconds / (1.2 * step * steps))))
