"""One command for a machine with a GPU: build, compare, time, profile, test, sanitize.

Needs only a Python with torch, and nvcc; no network and no environment of its own. Stages are ordered by worth, run in
processes of their own within a limit of time, and hand over each result as they have it. So whatever ends the command,
and whenever, leaves what was found until then. Writes ``bench/results/<gpu>.json`` and a log into ``build``, or both
into ``$OUT`` too.

    python bench/gpu.py first check peers    all stages, the default
    python bench/gpu.py first                build, every operator, headline gradients, timings, kernels, ncu: 240 s
    python bench/gpu.py check                tests on the GPU beside memcheck, then the other sanitizers: 230 s
    python bench/gpu.py peers                PyG eager, the twin, the user's job: the remaining time
    python bench/gpu.py --dry-run --out DIR  the same on the CPU, without a GPU; the figures are meaningless
    python bench/gpu.py --keep DIR           takes results from the $OUT of another machine into bench/results
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from on_gpu import record as records
from on_gpu import tables
from on_gpu.process import LEAST_S, ROOT
from on_gpu.stages import BUILD_S, GROUPS, Stages

RESULTS = ROOT / "bench" / "results"
# Ends by itself where a command may take ten minutes.
TOTAL_S = 570.0


def run(stages: Stages, groups: Sequence[str], total: float) -> int:
    """Runs the stages of `groups` within `total` seconds. Returns 1 after a fault, 2 without a GPU."""
    begin = time.monotonic()
    record = stages.record

    def left(limit: float, since: float) -> float:
        now = time.monotonic()
        return min(limit - (now - since), total - (now - begin))

    record.stage("probe", left(90, begin), stages.probe)
    if record.data["gpu"] is None and not record.dry:
        print("no GPU: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    built = record.stage("build", left(BUILD_S, begin), stages.build)
    if built not in ("done", "skipped"):
        return 1
    for group in groups:
        seconds, listed = GROUPS[group]
        # The build counts towards the first group.
        since = begin if group == groups[0] else time.monotonic()
        for name, limit, job, of_kernels in listed:
            rest = min(limit, left(seconds, since))
            if rest >= LEAST_S:
                record.stage(name, rest, lambda limit, job=job: job(stages, limit), optional=not of_kernels)  # type: ignore[misc]
            else:
                record.left_out(name)
    return 1 if record.failed() else 0


def keep(folder: Path, results: Path = RESULTS) -> int:
    """Merges the records of `folder` into `results`; returns 1 if there is none."""
    kept = 0
    for path in sorted(folder.rglob("*.json")):
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not found.get("gpu") or "stages" not in found:
            continue
        records.name_commits(found, ROOT)
        target = results / f"{records.stem(found['gpu'])}.json"
        if target.is_file():
            records.merge(found, json.loads(target.read_text()))
        target.write_text(json.dumps(found, indent=1) + "\n")
        print(f"kept in {target}")
        kept += 1
    if not kept:
        print(f"{folder}: no record of a GPU", file=sys.stderr)
    return 0 if kept else 1


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # As an exception it ends the processes that run, and leaves the record as it is.
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the given groups of stages, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="of all groups together (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="the CPU stands in for the GPU; for a look at the way")
    parser.add_argument("--out", type=Path, help="instead of bench/results")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="take the results in DIR; run nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(GROUPS)}")
    if options.keep is not None:
        return keep(options.keep, options.out or RESULTS)
    if options.dry_run and options.out is None:
        parser.error("--dry-run needs --out: its figures are not results")
    out = [Path(os.environ["OUT"])] if os.environ.get("OUT") else []
    logs = out or [options.out or ROOT / "build"]
    record = records.Record([options.out or RESULTS, *out], logs, options.dry_run)
    signal.signal(signal.SIGTERM, _end)
    code = run(Stages(record), options.groups or list(GROUPS), options.seconds)
    print(f"\n{tables.figures(record.data['figures'])}\n\n{tables.stages([record.data])}\n")
    print(f"failed: {', '.join(record.failed()) or 'nothing'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
