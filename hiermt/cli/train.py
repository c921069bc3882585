"""``python -m hiermt train --prices F --out DIR``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from hiermt import data
from hiermt.cli import artefacts, options, scores
from hiermt.cli.experiment import Experiment, decide
from hiermt.io.files import check_writable
from hiermt.nn import TGCN_HierarchicalMT


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("train", help="train on a table of prices; write model, metrics and pictures")
    options.add_table(parser)
    parser.add_argument("--out", type=options.path, required=True, metavar="DIR", help="folder for the results")
    options.add_settings(parser)
    group = parser.add_argument_group("model")
    group.add_argument("--hidden", type=options.whole(1), default=16, help="hidden channels (16)")
    group.add_argument("--layers", type=options.whole(1), default=2, help="T-GCN layers (2)")
    group.add_argument("--gcn", action="store_true", help="GCN convolutions in place of graph attention")
    group = parser.add_argument_group("long trainings")
    group.add_argument(
        "--checkpoint", type=options.file_path, metavar="FILE", help="file for the state of the training"
    )
    group.add_argument("--resume", action="store_true", help="resume from the checkpoint if it exists")
    group.add_argument("--tensorboard", type=options.path, metavar="DIR", help="write the losses for TensorBoard")
    options.add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    device = options.pick_device(args.device)
    artefacts.check_folder(args.out)
    if args.checkpoint is not None:
        check_writable(args.checkpoint)
    table = options.read(args)
    edges = None if args.adjacency is None else data.read_adjacency(args.adjacency, len(table.symbols))
    sectors = None if args.sectors is None else data.read_sectors(args.sectors)
    experiment = Experiment.prepare(table, options.settings(args), edges=edges, sectors=sectors, device=device)
    torch.manual_seed(args.seed)
    model = TGCN_HierarchicalMT(
        len(table.names),
        args.hidden,
        args.layers,
        use_gat=not args.gcn,
        layout="NTF",
        feature_names=table.names,
        backend=args.backend,
    ).to(device)
    print(
        f"{len(table.symbols)} stocks, {table.num_days:,} days, {len(table.names)} features, "
        f"{experiment.dataset.edge_index.size(1)} directed edges"
    )
    print(*options.describe_split(experiment.split, table.dates), sep="\n")
    finish(
        experiment,
        model,
        args.epochs,
        args.out,
        checkpoint=args.checkpoint,
        resume=args.resume,
        tensorboard=args.tensorboard,
    )
    return 0


def finish(
    experiment: Experiment, model: TGCN_HierarchicalMT, epochs: int, out: Path, **options: Any
) -> dict[str, Any]:
    """Trains, evaluates on the test span, writes and prints the results.

    Args:
        experiment (Experiment): data and settings.
        model (TGCN_HierarchicalMT): on the device of the data.
        epochs (int): at most.
        out (Path): folder for the results.
        options: passed on to :func:`hiermt.train_hierarchical`.

    Returns:
        The scores of the test span.
    """
    if experiment.split.validation:
        print("(the test loss below is that of the validation span; the test span is evaluated at the end)")
    start = time.perf_counter()
    ran = experiment.train(model, epochs, **options)
    seconds = time.perf_counter() - start
    test = experiment.split.test
    decisions = decide(model, experiment.dataset, test, experiment.settings.confidence, progress=True)
    scored = scores.evaluate(decisions.predictions, decisions.probabilities, experiment.labels_of(test))
    facts = {
        "epochs": ran,
        "train_seconds": round(seconds, 2),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_windows": len(experiment.split.train),
        "validation_windows": len(experiment.split.validation),
        "test_windows": len(test),
        "device": str(experiment.dataset.series.device),
        "torch": torch.__version__,
    }
    files = artefacts.write_artefacts(out, experiment, model, scored, decisions, facts)
    kept = ", kept the weights with the lowest validation loss" if experiment.split.validation else ""
    windows = ran * len(experiment.split.train)
    print(f"\ntrained {ran} epochs ({windows:,} windows) in {seconds:.1f} s{kept}")
    print(f"\nTest span, not used in training:\n\n{scores.table(scored)}\n\n{scores.verdict(scored)}\n")
    print(*(f"  {file}" for file in files), sep="\n")
    return scored
