"""The user's job, 100 epochs of 15 steps of 32 graphs with a test pass each: hiermt measured, PyG eager scaled.

python -m on_gpu.job [--dry-run]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from hiermt.cli import bench
from hiermt.data import FEATURES
from hiermt.nn import TGCN_HierarchicalMT
from on_gpu.lines import emit

CASE = f"{bench.EPOCHS} epochs of the user's job"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and hands over its seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    device = torch.device("cpu" if options.dry_run else "cuda")
    epochs = 1 if options.dry_run else bench.EPOCHS
    torch.manual_seed(0)
    model = TGCN_HierarchicalMT(len(FEATURES), layout="NTF", backend="native").to(device)
    data = bench.synthetic(device)
    seconds, _ = bench.train_job(model, data, epochs)
    emit("figure", case=CASE, competitor="native", ms=1e3 * seconds * bench.EPOCHS / epochs, how="measured")
    if not bench.speed.has_pyg():
        print(bench.speed.NO_PYG, flush=True)
        return 0
    each = bench.pyg_epoch(model, data)
    emit(
        "figure", case=CASE, competitor="pyg", ms=1e3 * each * bench.EPOCHS, how=f"scaled from {bench.PYG_STEPS} steps"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
