"""One command for a machine with a GPU: build, test, time, sanitize.

Needs only a Python with torch, and nvcc; no network and no environment of its own. Every stage runs in separate
processes within a time budget, so that a failure or hang in one does not affect the others, and all end within
nine minutes. Writes ``<gpu>.json``, ``<gpu>.md`` and ``make-gpu.log`` into ``bench/results``, and into ``$OUT`` too.

    python bench/gpu.py                 all stages
    python bench/gpu.py time            only some stages: build test time check compiled
    python bench/gpu.py --dry-run       all stages on the CPU, without a GPU; the figures are meaningless
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TOTAL_S = 525
# Most seconds of each stage, in order of importance; the last one gets the remaining time.
BUDGETS = {"build": 200, "test": 100, "time": 100, "check": 110, "compiled": TOTAL_S}
# Competitors in the order of timing, and the seconds reserved for each later one.
COMPETITORS = ("native", "pyg", "twin")
COMPILED = ("twin-compiled", "pyg-compiled")
KEPT_S = {"time": 22, "compiled": 60}
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Tests that compile kernels for another machine, or take minutes and do not need a GPU.
NOT_HERE = ("simt", "cli", "ops/test_isas.py", "training/test_ddp.py", "gpu/test_cuda_resources.py")
# cuBLAS needs this for deterministic matrix products in the twin.
PYTEST_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
# One process per list.
GPU_TESTS = (
    ["tests/ops/test_contract.py"],
    ["tests/gpu"],
)
PROBE = """
import json, sys, torch
gpu = torch.cuda.is_available()
print(json.dumps({
    "gpu": torch.cuda.get_device_name() if gpu else None,
    "capability": list(torch.cuda.get_device_capability()) if gpu else None,
    "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count if gpu else None,
    "l2_bytes": getattr(torch.cuda.get_device_properties(0), "L2_cache_size", None) if gpu else None,
    "torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0],
}))
"""


# Without native kernels all GPU tests are skipped, which must not count as a success.
KERNELS = """
import sys
from hiermt.native import extension
sys.exit((reason := extension.why_not_native("cuda")) and f"no native operators on the GPU: {reason}")
"""


@dataclass
class Command:
    """A process with a time limit, and its output in a file: a full pipe cannot block it."""

    words: Sequence[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        self.begin = time.monotonic()
        self.output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            self.words,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def finish(self) -> dict[str, Any]:
        """Waits up to the limit, then kills the process and its children."""
        try:
            status = self.process.wait(max(0.0, self.limit - (time.monotonic() - self.begin)))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            status = 124
        seconds = time.monotonic() - self.begin
        self.output.seek(0)
        text = self.output.read()
        self.output.close()
        words = " ".join(self.words)
        return {"command": words, "exit": status, "seconds": round(seconds, 1), "output": text}


class Run:
    """The stages of one call, their record and its files."""

    def __init__(self, folders: Sequence[Path], dry: bool, total: float = TOTAL_S) -> None:
        self.folders, self.dry, self.total = folders, dry, total
        self.start = time.monotonic()
        self.log: list[str] = []
        self.record: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "stages": {}, "figures": []}

    def left(self) -> float:
        """Seconds until the end of the total budget."""
        return self.total - (time.monotonic() - self.start)

    def commands(self, *commands: Command) -> list[dict[str, Any]]:
        """Runs commands in parallel; the log gets all of their output, the result its end."""
        started = [command for command in commands if min(command.limit, self.left()) >= 5]
        for command in started:
            command.limit = min(command.limit, self.left())
            command.start()
        results = []
        for command in commands:
            if command not in started:
                results.append({"command": " ".join(command.words), "skipped": "no time left"})
                continue
            result = command.finish()
            text = result.pop("output")
            self.say(f"[{result['seconds']:5.0f} s] exit {result['exit']}: {' '.join(result['command'].split())[:110]}")
            self.log.append(text)
            if result["exit"]:
                print("    " + "\n    ".join(text.splitlines()[-30:]), flush=True)
            results.append({**result, "tail": text[-3000:]})
        return results

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.log.append(line)

    def stage(self, name: str, job: Callable[[], Any]) -> None:
        """Runs a stage, records its result or exception, and writes the files."""
        self.say(f"== {name}, {self.left():.0f} s left")
        try:
            self.record["stages"][name] = job()
        except Exception as error:
            self.record["stages"][name] = {"error": f"{type(error).__name__}: {error}"}
            self.say(f"{name}: {type(error).__name__}: {error}")
        self.write()

    def write(self) -> None:
        name = self.record.get("gpu") or "no gpu"
        stem = re.sub(r"\W+", "-", name.lower()).strip("-")
        text = f"{name}, torch {self.record.get('torch')}\n\n{report.gpu_table(self.record['figures'])}\n"
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{stem}.json").write_text(json.dumps(self.record, indent=1) + "\n")
            (folder / f"{stem}.md").write_text(text)
            if folder != HERE / "results":
                (folder / "make-gpu.log").write_text("\n".join(self.log) + "\n")

    def failed(self) -> list[str]:
        """Stages that found a fault or did not complete."""
        return [name for name, found in self.record["stages"].items() if _is_bad(found)]


def _is_bad(found: Any) -> bool:
    if isinstance(found, list):
        return any(map(_is_bad, found))
    if not isinstance(found, dict):
        return False
    return bool(found.get("exit") or found.get("error") or found.get("faults")) or any(map(_is_bad, found.values()))


def probe(run: Run) -> dict[str, Any]:
    """Versions and GPU, from torch in a separate process."""
    (found,) = run.commands(Command([sys.executable, "-c", PROBE], 60))
    if found.get("exit"):
        return {}
    return json.loads(found["tail"].strip().splitlines()[-1])  # type: ignore[no-any-return]


def build(run: Run) -> Any:
    """Builds the extension in place for the present GPU."""
    if run.dry:
        return {"skipped": "dry run"}
    major, minor = run.record["capability"]
    environment = {
        "FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}",
        "MAX_JOBS": str(os.cpu_count() or 4),
    }
    words = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    found = run.commands(Command(words, BUDGETS["build"], environment))
    return found if found[0].get("exit") else found + run.commands(Command([sys.executable, "-c", KERNELS], 60))


def pytest_words(*arguments: str, processes: int = 0) -> list[str]:
    """The command line of pytest, on several cores if xdist is installed."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    # A hanging test must not prevent the report; after a fault of the GPU, all later tests fail.
    words += ["-o", "timeout=80", "--maxfail=25"]
    if processes and importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(min(processes, os.cpu_count() or 1))]
    return [*words, *arguments]


def test(run: Run) -> Any:
    """Tests every operator on each device and the whole model on the GPU, on the default and another stream."""
    if importlib.util.find_spec("pytest") is None:
        return {"error": "no pytest"}
    only = ["--collect-only"] if run.dry else []
    words = [pytest_words(*only, *paths, processes=4) for paths in GPU_TESTS]
    return run.commands(*(Command(one, BUDGETS["test"], PYTEST_ENVIRONMENT) for one in words))


def measure(run: Run, stage: str, competitors: Sequence[str]) -> Any:
    """Times competitors in turn, each in a process that writes every figure at once."""
    results = []
    end = max(0.0, run.left() - BUDGETS[stage])
    for later, competitor in zip(reversed(range(len(competitors))), competitors, strict=True):
        limit = run.left() - end
        limit = max(limit - later * KEPT_S[stage], limit / (later + 1))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "figures.json"
            words = [sys.executable, str(HERE / "gpu_cases.py"), competitor, str(path)]
            results += run.commands(Command(words + (["--dry-run"] if run.dry else []), limit))
            if path.exists():
                run.record["figures"] += json.loads(path.read_text())
                run.write()
            else:
                run.record["figures"].append({"case": "all", "competitor": competitor, "skipped": "no figures"})
    return results


def sanitizer(tool: str) -> list[str] | None:
    """Runs every operator once under compute-sanitizer, which slows kernels a hundredfold."""
    path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(path).exists():
        return None
    # The filter matches mangled names. Kernels of torch are excluded: none writes memory that ours read.
    options = ["--tool", tool, "--error-exitcode", "99", "--kernel-name", "kns=hiermt", "--print-limit", "20"]
    words = [path, *options, sys.executable, "-m", "support.calls"]
    return [*words, "--dtypes", "float32", *(["bfloat16", "float64"] if tool == "memcheck" else [])]


def faults(output: str) -> int | None:
    """Number of errors found by compute-sanitizer; None if it did not finish."""
    found = re.search(r"ERROR SUMMARY: (\d+) error", output)
    races = re.search(r"RACECHECK SUMMARY: (\d+) hazard", output)
    counts = [int(match[1]) for match in (found, races) if match]
    return max(counts) if counts else None


def check(run: Run) -> Any:
    """All sanitizers, and the remaining tests in parallel on idle cores."""
    limit = BUDGETS["check"]
    # Without the caching allocator, each tensor is an allocation with known bounds.
    memory = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT / "tests")}
    jobs: dict[str, Command | None] = {}
    for tool in TOOLS:
        words = sanitizer(tool)
        jobs[tool] = None if words is None else Command(words, limit, memory)
    ignored = [f"--ignore=tests/{name}" for name in NOT_HERE] + [
        f"--ignore={name}" for names in GPU_TESTS for name in names
    ]
    if importlib.util.find_spec("pytest") is not None:
        words = pytest_words("tests", *ignored, *(["--collect-only"] if run.dry else []), processes=8)
        jobs["tests"] = Command(words, limit, PYTEST_ENVIRONMENT)
    there = {name: job for name, job in jobs.items() if job is not None}
    results = dict(zip(there, run.commands(*there.values()), strict=True))
    found: dict[str, Any] = {name: results.get(name, {"skipped": "not installed"}) for name in jobs}
    for tool in TOOLS:
        if "tail" in found[tool]:
            found[tool]["faults"] = faults(found[tool]["tail"])
            if found[tool]["faults"] is None:
                found[tool]["error"] = "came to no end"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the given stages, by default all. Returns 1 after a fault, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(BUDGETS)}")
    parser.add_argument("--dry-run", action="store_true", help="the CPU stands in for the GPU; for a look at the way")
    parser.add_argument("--out", type=Path, help="instead of bench/results")
    options = parser.parse_args(arguments)
    if unknown := set(options.stages) - set(BUDGETS):
        parser.error(f"unknown stages {', '.join(sorted(unknown))}; expected some of {', '.join(BUDGETS)}")
    if options.dry_run and options.out is None:
        parser.error("--dry-run needs --out: its figures are not results")
    folders = [options.out or HERE / "results"]
    if os.environ.get("OUT"):
        folders.append(Path(os.environ["OUT"]))
    run = Run(folders, options.dry_run)
    run.record.update(probe(run))
    if run.record.get("gpu") is None and not options.dry_run:
        print("no GPU: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    work: dict[str, Callable[[], Any]] = {
        "build": lambda: build(run),
        "test": lambda: test(run),
        "time": lambda: measure(run, "time", COMPETITORS),
        "check": lambda: check(run),
        "compiled": lambda: measure(run, "compiled", COMPILED),
    }
    for name, job in work.items():
        if name in (options.stages or work):
            run.stage(name, job)
            if name == "build" and run.failed():
                break
    print(f"\n{report.gpu_table(run.record['figures'])}\n")
    print(f"written to {', '.join(map(str, folders))} after {time.monotonic() - run.start:.0f} s")
    failed = run.failed()
    print(f"failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
