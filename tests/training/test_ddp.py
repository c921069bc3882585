"""Two processes on halves of a batch train like one process on the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from hiermt import MultiTaskLoss, TGCN_HierarchicalMT, data, train_hierarchical
from hiermt.testing import stock_graph
from support.processes import two_processes

STOCKS, DAYS, FEATURES, WINDOW, EPOCHS = 6, 40, 3, 5, 3
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")


def dataset(gaps: bool = False) -> data.WindowDataset:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator, dtype=torch.float64)
    # Signals are rare, and fall unevenly on the two halves of a batch.
    signal = (torch.rand(STOCKS, DAYS, generator=generator) < 0.2).long()
    direction = torch.randint(2, (STOCKS, DAYS), generator=generator)
    edge_index, edge_weight = stock_graph(STOCKS, 8, 1)
    present = None
    if gaps:
        # Stocks that list late are more often absent in some halves of a batch than in the others.
        present = torch.arange(DAYS) >= torch.randint(DAYS, (STOCKS, 1), generator=generator)
        series = series.masked_fill(~present.unsqueeze(-1), torch.nan)
    return data.WindowDataset(series, edge_index, edge_weight.double(), WINDOW, signal, direction, present=present)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "options": {
        "signal_weight": [0.3, 2.0],
        "direction_weight": [1.5, 0.2],
        "label_smoothing": 0.1,
        "focal_gamma": 1.0,
    },
    "gaps": {},
    "gaps, weights": {"signal_weight": [0.3, 2.0]},
}


def trained(rank: int, world: int, batch_size: int, name: str) -> tuple[dict[str, Tensor], list[float]]:
    starts = range(32)
    sampler = DistributedSampler(starts, world, rank, shuffle=True, seed=3)
    loader = data.WindowLoader(dataset(name.startswith("gaps")), starts, batch_size, sampler=sampler)
    torch.manual_seed(0)
    model = TGCN_HierarchicalMT(FEATURES, 4).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    wrapped = model if world == 1 else DistributedDataParallel(model)
    group = None if world == 1 else distributed.group.WORLD
    criterion = MultiTaskLoss(0.7, process_group=group, **OPTIONS[name])
    losses, _, _ = train_hierarchical(wrapped, optimizer, criterion, loader, None, EPOCHS, progress=False)
    return model.state_dict(), losses


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    for name in OPTIONS:
        state, losses = trained(rank, world, 4, name)
        torch.save({"state": state, "losses": losses}, f"{folder}/{name}.{rank}")
    distributed.destroy_process_group()


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """With all options in the same two processes, which take longer to start than to train."""
    two_processes(worker, 2, str(tmp_path))
    for options in OPTIONS:
        expected, losses = trained(0, 1, 8, options)
        found = [torch.load(tmp_path / f"{options}.{rank}", weights_only=True) for rank in range(2)]
        for name, tensor in expected.items():
            assert torch.equal(found[0]["state"][name], found[1]["state"][name]), f"{options}: {name}"
            torch.testing.assert_close(found[0]["state"][name], tensor, rtol=1e-10, atol=1e-12)
        for own, other, together in zip(found[0]["losses"], found[1]["losses"], losses, strict=True):
            assert (own + other) / 2 == pytest.approx(together, rel=1e-10), options


def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "examples" / "ddp.py"), "--epochs", "1", "--batch-size", "64"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "2 processes, batches of 2 x 64: loss" in ended.stdout
