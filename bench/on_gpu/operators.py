"""Runs every operator once, forward and backward, against its twin; a line per call.

python -m on_gpu.operators [--device cuda] [--dtypes float32 bfloat16]

compute-sanitizer runs it, too: nothing else is worth its time. After a fault of a kernel a new process runs the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from on_gpu.device import computes, run_rest
from on_gpu.lines import emit
from support.calls import compare
from support.problems import problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares every problem; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--only", default="", help="problems whose name contains this")
    parser.add_argument("--begin", type=int, default=0, help="number of the first call")
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(words)
    every = [problem for problem in problems() if not problem.large and options.only in str(problem)]
    calls = [(problem, dtype) for dtype in options.dtypes for problem in every]
    failed = 0
    for i, (problem, dtype) in enumerate(calls):
        if i < options.begin:
            continue
        name = f"{problem} {dtype}"
        try:
            compare(problem, getattr(torch, dtype), options.device)
        except Exception as error:
            failed += 1
            emit("call", name=name, outcome="failed", error=f"{type(error).__name__}: {str(error)[:400]}")
            if not computes(options.device):
                return run_rest("on_gpu.operators", words, i + 1) or 1
        else:
            emit("call", name=name, outcome="passed")
    print(f"{len(calls) - options.begin} calls, {failed} failed", flush=True)
    return 1 if failed or not every else 0


if __name__ == "__main__":
    sys.exit(main())
