"""Runs every operator once, forward and backward, against its twin; a line per call.

python -m on_gpu.operators [--device cuda] [--dtypes float32 bfloat16]

compute-sanitizer runs it, too: nothing else is worth its time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from on_gpu.lines import emit
from support.calls import compare
from support.problems import problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares every problem; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--only", default="", help="problems whose name contains this")
    options = parser.parse_args(arguments)
    every = [problem for problem in problems() if not problem.large and options.only in str(problem)]
    failed = 0
    for dtype in options.dtypes:
        for problem in every:
            name = f"{problem} {dtype}"
            try:
                compare(problem, getattr(torch, dtype), options.device)
            except Exception as error:
                failed += 1
                emit("call", name=name, outcome="failed", error=f"{type(error).__name__}: {str(error)[:400]}")
            else:
                emit("call", name=name, outcome="passed")
    print(f"{len(options.dtypes) * len(every)} calls, {failed} failed", flush=True)
    return 1 if failed or not every else 0


if __name__ == "__main__":
    sys.exit(main())
