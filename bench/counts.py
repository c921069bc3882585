"""Counts what the CUDA kernels of a benchmark case execute, without a GPU.

    python bench/counts.py                          forward and training step of 32 graphs
    python bench/counts.py --cases stocks-100 --passes forward
    python bench/counts.py --save                   writes bench/results/counts-sm90.json, too
    HIERMT_PTX_LINES=1 python bench/counts.py --lines 20        and the source lines that execute the most
    python bench/counts.py --check                  exits 1 if a pass has more than 3 % more instructions than there

The kernels run as the PTX that nvcc makes of them, see tests/ptx. Full issue is one instruction a cycle on each of the
four schedulers of 132 multiprocessors at 1.98 GHz, an H100: no kernel is faster than that. Registers are those that
ptxas reported to the last build with CUDA kernels (FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0+PTX); without one the
occupancy is left out, and --save is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import cases
import report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from ptx import lines, sources  # noqa: E402
from simt.harness import Simt  # noqa: E402
from support import cuda_resources  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "counts-sm90.json"
MULTIPROCESSORS, SCHEDULERS, GHZ = 132, 4, 1.98
SHARED_PER_MULTIPROCESSOR, SHARED_RESERVED, MAX_BLOCKS = 233472, 1024, 32
# Classes of warp instructions, in the order of the table.
CLASSES = ("ffma", "float", "double", "mufu", "mma", "integer", "load_shared", "store_shared", "load_global")
CLASSES += ("store_global", "local", "shuffle", "barrier", "branch")
# Gathers are loads of 16 bytes of shared memory at an address that an index in global memory decides: of a neighbour.
SUMS = ("launches", "blocks", "warps", "wavefronts", "sectors", "gathers", "gather_wavefronts", *CLASSES)


def full_issue_us(instructions: float) -> float:
    """Microseconds that an H100 needs to issue so many warp instructions."""
    return instructions / (MULTIPROCESSORS * SCHEDULERS * GHZ * 1e3)


def count(case_name: str, pass_name: str) -> list[dict[str, Any]]:
    """A record for each kernel of one pass, in the order of the launches."""
    model, arguments = cases.problem(cases.CASES[case_name], "native")
    step = {"forward": cases.forward, "training": cases.training}[pass_name](model, arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts"
        environment = {"HIERMT_SIMT_PTX": str(sources.runner_map()), "HIERMT_SIMT_COUNTS": str(path)}
        with Simt(environment):
            step()
        found = [json.loads(line) for line in path.read_text().splitlines()]
    return merged(found)


def merged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record a kernel from one for each operator that launched it."""
    names = sources.plain_names([record["kernel"] for record in found])
    kernels: dict[str, dict[str, Any]] = {}
    for name, record in zip(names, found, strict=True):
        total = kernels.setdefault(name, {**dict.fromkeys(SUMS, 0), "threads": 0, "shared_bytes": 0})
        for key in SUMS:
            total[key] += record[key]
        for key in ("threads", "shared_bytes"):
            total[key] = max(total[key], record[key])
        total.setdefault("lines", Counter()).update(record["lines"])
    records = []
    for name, total in kernels.items():
        instructions = sum(total[key] for key in CLASSES)
        records.append({"kernel": name, "instructions": instructions, **total})
    return records


def registers() -> dict[str, tuple[int, int]]:
    """Registers of a thread and bytes of its stack for each kernel, as ptxas reported them to the last build."""
    kernels = [kernel for kernel in cuda_resources.of_build() if kernel.arch == 90]
    return {kernel.name.replace(" ", ""): (kernel.registers, kernel.stack) for kernel in kernels}


def blocks_per_multiprocessor(registers: int, threads: int, shared_bytes: int) -> int:
    """How many thread blocks fit: by registers, shared memory, warps and their number."""
    warps = -(-threads // 32)
    by_registers = cuda_resources.REGISTERS_PER_MULTIPROCESSOR // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = SHARED_PER_MULTIPROCESSOR // (shared_bytes + SHARED_RESERVED)
    return min(by_registers, by_shared, cuda_resources.MAX_WARPS // warps, MAX_BLOCKS)


def add_occupancy(records: list[dict[str, Any]]) -> None:
    """Adds registers, thread blocks and warps of a multiprocessor to each record, if there is a build to ask."""
    used = registers()
    for record in records if used else []:
        record["registers"], record["stack_bytes"] = used[record["kernel"]]
        blocks = blocks_per_multiprocessor(record["registers"], record["threads"], record["shared_bytes"])
        record["blocks_per_multiprocessor"] = blocks
        record["warps_per_multiprocessor"] = blocks * -(-record["threads"] // 32)


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a row for each kernel, the largest first, and their sum."""
    lines = [
        "| kernel | launches | M instructions | us | ffma | integer | shared M, wavefronts each "
        "| M sectors | blocks x threads | registers | blocks, warps an SM |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in sorted(records, key=lambda record: -record["instructions"]):
        instructions = max(record["instructions"], 1)
        shared = record["load_shared"] + record["store_shared"]
        blocks = record["blocks"] // record["launches"]
        each = record["wavefronts"] / max(shared, 1)
        lines.append(
            f"| {record['kernel'][:70]} | {record['launches']} | {instructions / 1e6:.2f} "
            f"| {full_issue_us(instructions):.2f} | {record['ffma'] / instructions:.0%} "
            f"| {record['integer'] / instructions:.0%} | {shared / 1e6:.2f}, {each:.1f} "
            f"| {record['sectors'] / 1e6:.2f} | {blocks} x {record['threads']} | {record.get('registers', '')} "
            f"| {record.get('blocks_per_multiprocessor', '')}, {record.get('warps_per_multiprocessor', '')} |"
        )
    total = sum(record["instructions"] for record in records)
    lines.append(
        f"| sum | {sum(r['launches'] for r in records)} | {total / 1e6:.2f} | {full_issue_us(total):.1f} |" + " |" * 7
    )
    return "\n".join(lines)


def gathers(records: list[dict[str, Any]]) -> dict[str, float]:
    """Wavefronts that a warp's load of 16 bytes of a neighbour takes, by kernel. Lanes apart take 4 at least."""
    return {r["kernel"]: r["gather_wavefronts"] / r["gathers"] for r in records if r["gathers"]}


def hottest_lines(records: list[dict[str, Any]], most: int) -> str:
    """For each kernel the source lines of the most instructions: of the line itself, and with what is inlined there."""
    kernels = {kernel.name: kernel for kernel in sources.kernels()}
    found = []
    for record in sorted(records, key=lambda record: -record["instructions"]):
        own, inclusive = lines.by_source(kernels[record["kernel"]], record["lines"])
        for title, counter in (("its own", own), ("and inlined", inclusive)):
            found.append(f"\n{record['kernel'][:90]}, M instructions, {title}:")
            found += [f"  {count / 1e6:9.3f}  {line}" for line, count in counter.most_common(most)]
    return "\n".join(found)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="stocks-3200", help="comma-separated, see bench/cases.py")
    parser.add_argument("--passes", default="forward,training", help="comma-separated")
    parser.add_argument("--lines", type=int, default=0, help="of each kernel; needs HIERMT_PTX_LINES=1")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--check", action="store_true", help=f"compare with {RESULTS.name}")
    options = parser.parse_args()
    if options.lines and not sources.LINES:
        parser.error("--lines needs the PTX with line numbers: set HIERMT_PTX_LINES=1")
    reason = sources.missing()
    if reason is not None:
        print(f"bench/counts.py {reason}", file=sys.stderr)
        return 2
    if options.save and not registers():
        print("the occupancy, which --save writes, needs a build with CUDA kernels", file=sys.stderr)
        return 2
    saved = report.load_counts(RESULTS) if RESULTS.exists() else {}
    found = dict(saved)
    counted = []
    for case_name in options.cases.split(","):
        for pass_name in options.passes.split(","):
            records = count(case_name, pass_name)
            add_occupancy(records)
            counted.append(f"{case_name} {pass_name}")
            found[counted[-1]] = records
            print(f"\n{case_name}, {pass_name}\n\n{table(records)}\n", flush=True)
            if options.lines:
                print(hottest_lines(records, options.lines), flush=True)
            for record in records:
                del record["lines"]
            for kernel, wavefronts in gathers(records).items():
                print(f"{kernel}: {wavefronts:.1f} wavefronts a load of a neighbour", flush=True)
    if options.save:
        RESULTS.write_text(
            json.dumps({"ghz": GHZ, "multiprocessors": MULTIPROCESSORS, "counts": found}, indent=1) + "\n"
        )
    if not options.check:
        return 0
    unknown = [name for name in counted if name not in saved]
    if unknown:
        print(f"{RESULTS.name} has no {', '.join(unknown)}: run with --save first", file=sys.stderr)
        return 1
    print()
    return report.compare_counts(saved, {name: found[name] for name in counted})


if __name__ == "__main__":
    sys.exit(main())
