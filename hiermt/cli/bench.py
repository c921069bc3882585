"""``hiermt bench``: forward, training step, or the whole job of 100 epochs, beside PyG eager."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt.cli import options, speed
from hiermt.cli.argument_types import real, whole
from hiermt.cli.epochs import Epochs
from hiermt.cli.output import log
from hiermt.data import FEATURES, WindowDataset, WindowLoader, pyg_loader
from hiermt.nn import TGCN_HierarchicalMT
from hiermt.testing import stock_graph
from hiermt.training import adam, train_hierarchical

STOCKS, WINDOW, BATCH, STEPS, TEST_WINDOWS, EPOCHS = 100, 25, 32, 15, 119, 100
PYG_STEPS = 6


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = options.add_command(
        commands, "bench", "compare the speed of the model with PyG eager", ["", "--job seed --epochs 10 --threads 2"]
    )
    parser.add_argument(
        "--job",
        choices=("step", "seed"),
        default="step",
        help=f"step: forward and training step; seed: {EPOCHS} epochs of {STEPS} steps of {BATCH} x {STOCKS} stocks",
    )
    parser.add_argument("--epochs", type=whole(1), default=EPOCHS, help=f"epochs of the job ({EPOCHS})")
    parser.add_argument("--seconds", type=real(0.1, 600), default=2.0, help="seconds per timing of a step (2)")
    parser.add_argument("--threads", type=whole(1), help="CPU threads (default: torch's choice)")
    options.add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the command."""
    device = options.pick_device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = TGCN_HierarchicalMT(len(FEATURES), layout="NTF", backend=args.backend).to(device)
    data = synthetic(device)
    threads = torch.get_num_threads()
    where = f"{device}, {threads} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    facts = {"torch": torch.__version__, "where": where, "backend": speed.backend_of(model, device)}
    log.info("torch %s", ", ".join(facts.values()))
    log.info("%d windows x %d stocks x %d days x %d features, synthetic prices", BATCH, STOCKS, WINDOW, len(FEATURES))
    return {**facts, **(seed_job(model, data, args) if args.job == "seed" else steps(model, data, args))}


def synthetic(device: torch.device) -> WindowDataset:
    """Random features and labels over a graph of 720 edges, with the sizes of the job."""
    days = STEPS * BATCH + 2 * WINDOW + TEST_WINDOWS
    generator = torch.Generator(device="cpu").manual_seed(0)
    series = torch.randn(STOCKS, days, len(FEATURES), generator=generator, dtype=torch.float32, device="cpu")
    signal, coin = torch.randint(2, (2, STOCKS, days), generator=generator, dtype=torch.int64, device="cpu")
    direction = signal * coin
    return WindowDataset(series, *stock_graph(STOCKS), WINDOW, signal, direction).to(device)


def steps(model: TGCN_HierarchicalMT, data: WindowDataset, args: argparse.Namespace) -> dict[str, Any]:
    """Times the forward and the training step of one batch."""
    batch = next(iter(WindowLoader(data, range(STEPS * BATCH), BATCH, shuffle=True)))
    text, found = speed.comparison(model, batch, args.seconds)
    log.info("%s", text)
    return {name: dataclasses.asdict(timing) for name, timing in found.items()}


def windows() -> tuple[range, range]:
    """First days of the windows that train, and of those that test."""
    train = range(STEPS * BATCH)
    return train, range(train.stop + WINDOW, train.stop + WINDOW + TEST_WINDOWS)


def seed_job(model: TGCN_HierarchicalMT, data: WindowDataset, args: argparse.Namespace) -> dict[str, Any]:
    """Times the whole job with hiermt; for PyG, times a few steps and scales them to the whole."""
    log.info(
        "job: %d epochs of %d steps, each followed by a test pass over %d windows", args.epochs, STEPS, TEST_WINDOWS
    )
    seconds, losses = train_job(model, data, args.epochs)
    each = seconds / args.epochs
    log.info("hiermt     %8.2f s measured, %.1f ms per epoch, last training loss %.4f", seconds, 1e3 * each, losses[-1])
    found = {"epochs": args.epochs, "seconds": seconds, "last_training_loss": losses[-1]}
    if not speed.has_pyg():
        log.info("%s", speed.NO_PYG)
        return found
    epoch = pyg_epoch(model, data)
    log.info(
        "PyG eager  %8.1f s estimated: %d steps and one test pass timed, scaled to %d epochs; %.1f x",
        epoch * args.epochs,
        PYG_STEPS,
        args.epochs,
        epoch / each,
    )
    return {**found, "pyg_seconds_estimated": epoch * args.epochs}


def train_job(model: TGCN_HierarchicalMT, data: WindowDataset, epochs: int) -> tuple[float, list[float]]:
    """Seconds of the job with hiermt, and its training losses."""
    train, test = windows()
    start = time.perf_counter()
    with Epochs(epochs, every=10) as watch:
        losses, _, _ = train_hierarchical(
            model,
            adam(model),
            None,
            WindowLoader(data, train, BATCH, shuffle=True),
            WindowLoader(data, test, TEST_WINDOWS),
            num_epochs=epochs,
            device=data.series.device,
            callback=watch,
            progress=False,
        )
    return time.perf_counter() - start, losses


def pyg_epoch(model: TGCN_HierarchicalMT, data: WindowDataset) -> float:
    """Seconds of one epoch with PyG: its loader, its modules, and a loop that reads each loss from the device."""
    from hiermt.testing import pyg

    train, test = windows()
    device = data.series.device
    other = pyg.like(model)
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
    host = data.to("cpu")

    def step(batch: Any) -> None:
        batch = batch.to(device)
        signal, direction = batch.signal_labels, batch.direction_labels
        signal_logits, direction_logits = other(batch.x, batch.edge_index, batch.edge_weight)
        loss = _loss(signal_logits, direction_logits, signal, direction)
        if other.training:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        loss.item()

    other.train()
    step(next(iter(pyg_loader(host, train, BATCH))))
    step_seconds = _timed(step, pyg_loader(host, train[: PYG_STEPS * BATCH], BATCH, shuffle=True))
    other.eval()
    with torch.no_grad():
        test_seconds = _timed(step, pyg_loader(host, test, TEST_WINDOWS))
    return step_seconds / PYG_STEPS * STEPS + test_seconds


def _timed(step: Any, batches: Iterable[Any]) -> float:
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    return time.perf_counter() - start


def _loss(signal_logits: Tensor, direction_logits: Tensor, signal: Tensor, direction: Tensor) -> Tensor:
    """The multi-task loss in plain PyTorch, with boolean indexing as is common."""
    mask = signal == 1
    loss = F.cross_entropy(signal_logits, signal)
    return loss + F.cross_entropy(direction_logits[mask], direction[mask]) if mask.any() else loss
