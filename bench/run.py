"""Times every competitor in a process of its own and keeps the figures of this machine.

python bench/run.py                      the two main cases, a few minutes
python bench/run.py --cases all          every case
python bench/run.py --slow               torch.compile too
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cases
import report

from hiermt.io.files import atomic_write, check_writable

HERE = Path(__file__).parent
# glibc keeps freed memory, so that large temporaries do not fault their pages in again.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(4 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}


def main() -> int:
    """Runs the competitors, merges, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="stocks-3200,stocks-100,gcn-3200")
    parser.add_argument("--passes", default="forward,training")
    parser.add_argument("--competitors", default=",".join(c for c in cases.COMPETITORS if c not in cases.SLOW))
    parser.add_argument("--slow", action="store_true", help="also the models under torch.compile")
    parser.add_argument("--out", type=Path, help="default: bench/results/<cpu>-<cores>.json")
    args = parser.parse_args()
    competitors = args.competitors.split(",") + (list(cases.SLOW) if args.slow else [])
    names = list(cases.CASES) if args.cases == "all" else args.cases.split(",")
    if args.out is not None:
        check_writable(args.out)
    records: list[dict[str, Any]] = []
    for name in names:
        for competitor in competitors:
            if not cases.applies(cases.CASES[name], competitor):
                continue
            wait_until_idle()
            print(f"{name}: {competitor}", flush=True)
            records += run(name, competitor, args.passes)
    if not records:
        print("nothing was measured", file=sys.stderr)
        return 1
    out = args.out or HERE / "results" / f"{machine_name(records[0])}.json"
    merged = report.merge(report.load(out) if out.exists() else [], records)
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(merged, indent=1) + "\n")
    print(f"\n{report.table(merged)}\n\nwritten to {out}")
    return 0


def run(case: str, competitor: str, passes: str) -> list[dict[str, Any]]:
    """One competitor on one case in a fresh process."""
    environment = dict(os.environ)
    if competitor != "pyg":
        environment |= TUNED if competitor == "pyg-tuned" else {}
    if competitor.endswith("avx2"):
        environment["HIERMT_CPU_ISA"] = "avx2"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_model.py")]
        command += ["--cases", case, "--competitors", competitor, "--passes", passes, f"--benchmark-json={path}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent)
        if done.returncode or not path.stat().st_size:
            print("  " + "\n  ".join(done.stdout.splitlines()[-5:]), file=sys.stderr)
            return []
        return report.records(json.loads(path.read_text()))


def wait_until_idle(limit: float = 60.0) -> None:
    """Waits while the cores are busy, at most `limit` seconds."""
    if not hasattr(os, "getloadavg") or not Path("/proc/stat").exists():
        return
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and busy_share() > 0.15:
        time.sleep(1)


def busy_share() -> float:
    """Share of the cores in use, over half a second."""

    def read() -> tuple[int, int]:
        values = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return sum(values), values[3] + values[4]

    total, idle = read()
    time.sleep(0.5)
    total_after, idle_after = read()
    return 1 - (idle_after - idle) / max(total_after - total, 1)


def machine_name(record: dict[str, Any]) -> str:
    """File name for the machine a record comes from."""
    name = record["cpu"] if record["device"] == "cpu" else record["device"]
    isa = f"-{record['isa']}" if record["device"] == "cpu" and record["isa"] else ""
    return re.sub(r"[^a-z0-9]+", "-", f"{name}-{record['cores']}-cores{isa}".lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
