"""``hiermt train --prices F --out DIR``."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from hiermt import data
from hiermt.cli import artefacts, options, overwrites, plain, record, summary
from hiermt.cli.argument_types import file_path, path
from hiermt.cli.experiment import Experiment
from hiermt.cli.kinds import task_name
from hiermt.cli.output import log
from hiermt.cli.settings import Settings
from hiermt.io.files import check_writable


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = options.add_command(
        commands,
        "train",
        "train on a table of prices; write model, metrics, pictures and report",
        [
            "--prices prices.csv --out model",
            "--prices prices.csv --out model --horizon 5 --epochs 50 --seed 1",
            "--prices prices.csv --out model --checkpoint state --resume",
            "--config model/run.json --out again",
        ],
    )
    options.add_table(parser)
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for the results")
    options.add_graph_files(Settings.add_options(parser)["graph"])
    group = parser.add_argument_group("long trainings")
    group.add_argument("--checkpoint", type=file_path, metavar="FILE", help="file for the state of the training")
    group.add_argument("--resume", action="store_true", help="resume from the checkpoint if it exists")
    group.add_argument("--tensorboard", type=path, metavar="DIR", help="write the losses for TensorBoard")
    options.add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the command."""
    device = options.pick_device(args.device)
    if args.resume and args.checkpoint is None:
        raise ValueError("--resume: needs --checkpoint FILE to continue from")
    task_name(Settings.of(args))  # a contradiction is told before the table is read
    artefacts.check_folder(args.out)
    if args.checkpoint is not None:
        check_writable(args.checkpoint)
    state = [] if args.checkpoint is None else [args.checkpoint]
    overwrites.check_apart(args, ("--out", [args.out / name for name in artefacts.FILES]), ("--checkpoint", state))
    if args.tensorboard is not None:
        check_writable(args.tensorboard / "events")
    files = record.inputs(args)
    experiment = prepare(args, device)
    table = experiment.table
    log.info("%s", options.describe_split(experiment.split, table.dates))
    return finish(
        args,
        experiment,
        experiment.model(args.backend),
        record.describe(args, device, table.names, files),
        checkpoint=args.checkpoint,
        resume=args.resume,
        tensorboard=args.tensorboard,
    )


def prepare(args: argparse.Namespace, device: torch.device) -> Experiment:
    """Reads the files that the arguments name."""
    table = options.read(args)
    edges = None if args.adjacency is None else data.read_adjacency(args.adjacency, len(table.symbols))
    sectors = None if args.sectors is None else data.read_sectors(args.sectors)
    experiment = Experiment.prepare(table, Settings.of(args), edges=edges, sectors=sectors, device=device)
    log.info(
        "%d stocks, %s days, %d features, %d directed edges",
        len(table.symbols),
        f"{table.num_days:,}",
        len(table.names),
        experiment.dataset.edge_index.size(1),
    )
    return experiment


def finish(
    args: argparse.Namespace,
    experiment: Experiment,
    model: Any,
    run_record: dict[str, Any],
    **loop: Any,
) -> dict[str, Any]:
    """Trains, evaluates on the test span, writes and shows the results.

    Args:
        args (Namespace): with ``out``, the folder for the results.
        experiment (Experiment): data and settings.
        model (Module): on the device of the data.
        run_record (dict): content of ``run.json``.
        loop: passed on to :func:`hiermt.train`.

    Returns:
        What ``metrics.json`` holds of the test span, and the paths of the files.
    """
    start = time.perf_counter()
    ran = experiment.train(model, **loop)
    seconds = time.perf_counter() - start
    test = experiment.split.test
    decisions = experiment.decide(model, test, progress=True)
    scored = experiment.measure(decisions, test)
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
    files = artefacts.write_artefacts(args.out, experiment, model, scored, decisions, facts, run_record)
    kept = ", kept the weights with the lowest validation loss" if experiment.split.validation else ""
    windows = f"{ran * len(experiment.split.train):,}"
    log.info("\ntrained %d epochs (%s windows) in %.1f s%s", ran, windows, seconds, kept)
    text = summary.text(scored) if experiment.kind.decides else plain.text(scored)
    log.info("\nTest span, not used in training:\n\n%s", text)
    log.info("\n%s", "\n".join(f"  {file}" for file in files))
    return {"out": args.out, "files": files, "test": scored, **facts}
