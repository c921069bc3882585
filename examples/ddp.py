"""Trains one model in several processes, each on its share of every batch.

    torchrun --nproc-per-node 2 examples/ddp.py                 # two processes on one CPU
    torchrun --nproc-per-node 8 examples/ddp.py --device cuda   # eight GPUs of one machine
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 examples/ddp.py --device cuda

The gradients equal those of one process with the union of their batches.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from hiermt import MultiTaskLoss, TGCN_HierarchicalMT, data, train_hierarchical
from hiermt.testing import stock_graph
from hiermt.training import adam

STOCKS, DAYS, WINDOW = 100, 400, 25


def market() -> data.WindowDataset:
    """Random features and labels over a random graph. Replace by real data, equal in every process."""
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, len(data.FEATURES), generator=generator)
    signal, direction = (torch.randint(2, (STOCKS, DAYS), generator=generator) for _ in range(2))
    return data.WindowDataset(series, *stock_graph(STOCKS), WINDOW, signal, direction)


def main() -> None:
    """Trains in this process, one of those started by torchrun."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16, help="windows of one process")
    args = parser.parse_args()

    device = torch.device(args.device)
    if args.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if args.device == "cuda" else "gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()

    starts = range(DAYS - WINDOW + 1)
    sampler: DistributedSampler[int] = DistributedSampler(starts, world, rank, shuffle=True, seed=0)  # type: ignore[arg-type]
    loader = data.WindowLoader(market(), starts, args.batch_size, sampler=sampler, drop_last=True, device=device)

    torch.manual_seed(0)
    model = TGCN_HierarchicalMT(len(data.FEATURES)).to(device)
    parallel = DistributedDataParallel(model)
    criterion = MultiTaskLoss(process_group=distributed.group.WORLD)
    losses, _, _ = train_hierarchical(
        parallel, adam(model), criterion, loader, None, args.epochs, device=device, progress=False
    )
    if rank == 0:
        print(f"{world} processes, batches of {world} x {args.batch_size}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    distributed.destroy_process_group()
    # After a backward, a thread of gloo releases a Python object; if the interpreter is shutting down by then, it
    # aborts (seen with torch 2.13).
    time.sleep(0.2)


if __name__ == "__main__":
    main()
