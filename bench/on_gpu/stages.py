"""What each stage of ``bench/gpu.py`` runs. A stage gets its seconds and returns the results of its processes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from on_gpu.lines import MARK
from on_gpu.process import ROOT, Command
from on_gpu.record import Record

Results = list[dict[str, Any]]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Files with tests that need a GPU; their other tests are left out.
GPU_TESTS = (
    "tests/ops/test_contract.py",
    "tests/ops/test_contract_bits.py",
    "tests/gpu",
    "tests/model/test_graph_writes.py",
    "tests/data/test_data_loaders.py",
)
# cuBLAS needs this for deterministic matrix products in the twin.
PYTEST_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
# Without the caching allocator, each tensor is an allocation with known bounds.
SANITIZER_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
FOUND = "99"  # exit status of compute-sanitizer after an error

PROBE = f"""
import json, sys, torch
gpu = torch.cuda.is_available()
print({MARK!r} + json.dumps({{
    "kind": "machine",
    "gpu": torch.cuda.get_device_name() if gpu else None,
    "capability": list(torch.cuda.get_device_capability()) if gpu else None,
    "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count if gpu else None,
    "torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0],
}}))
"""
# Without native kernels all GPU tests are skipped, which must not count as a success.
KERNELS = """
import sys
from hiermt.native import extension
sys.exit((reason := extension.why_not_native("cuda") or extension.why_not_gpu(None)) and f"no kernels here: {reason}")
"""


def python(name: str, limit: float, *words: str, dry: bool = False, **environment: str) -> Command:
    """A command of this Python."""
    return Command(name, [sys.executable, *words, *(["--dry-run"] if dry else [])], limit, environment)


def find(program: str, *places: str) -> str | None:
    """A program on the PATH or in a folder of the CUDA toolkit."""
    there = [place for place in places if Path(place).is_file()]
    return shutil.which(program) or (there[-1] if there else None)


def skipped(name: str, why: str) -> Results:
    return [{"name": name, "command": name, "skipped": why}]


class Stages:
    """The stages, by name, over one record."""

    def __init__(self, record: Record) -> None:
        self.record, self.dry = record, record.dry

    def run(self, limit: float, *commands: Command) -> Results:
        return self.record.run(limit, *commands)

    # First --------------------------------------------------------------------------------------------------------

    def probe(self, limit: float) -> Results:
        """GPU and versions."""
        return self.run(limit, python("probe", limit, "-c", PROBE))

    def build(self, limit: float) -> Results:
        """Builds the extension in place for this GPU alone, then loads it."""
        if self.dry:
            return skipped("build", "dry run")
        major, minor = self.record.data["capability"]
        environment = {
            "FORCE_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}",
            "MAX_JOBS": str(os.cpu_count() or 4),
        }
        built = self.run(limit, python("build", limit, "setup.py", "-q", "build_ext", "--inplace", **environment))
        return built if built[0].get("exit") else built + self.run(60, python("load", 60, "-c", KERNELS))

    def operators(self, limit: float) -> Results:
        """Every operator once, forward and backward, against its twin."""
        # On a CPU the tests do that; here a few calls show the way.
        words = ["--device", "cpu", "--only", "decision"] if self.dry else []
        return self.run(limit, python("operators", limit, "-m", "on_gpu.operators", *words))

    def headline(self, limit: float) -> Results:
        """Forward and all gradients at the headline shape against the twin in float64."""
        return self.run(limit, python("headline", limit, "-m", "on_gpu.headline", dry=self.dry))

    def native(self, limit: float) -> Results:
        return self.competitor("native", limit)

    def kernels(self, limit: float) -> Results:
        """The kernels of a training step, and whether they are the fused ones."""
        return self.run(limit, python("kernels", limit, "-m", "on_gpu.step", dry=self.dry))

    def ncu(self, limit: float) -> Results:
        """Counters of every kernel of one training step: a summary to the log, then a full report beside it."""
        places = ["/usr/local/cuda/bin/ncu", *map(str, sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu")))]
        ncu = find("ncu", *places)
        if ncu is None:
            return skipped("ncu", "not installed")
        step = [sys.executable, "-m", "on_gpu.step", "--mark", *(["--dry-run"] if self.dry else [])]
        options = [ncu, "--clock-control", "none", "--profile-from-start", "off"]
        summary = [word for name in ("SpeedOfLight", "Occupancy", "LaunchStats") for word in ("--section", name)]
        report = self.record.logs[0] / "step"
        found = self.run(limit, Command("ncu", [*options, *summary, *step], limit))
        if found[0].get("exit") or "skipped" in found[0]:
            return found
        full = [*options, "--set", "full", "--force-overwrite", "--export", str(report), *step]
        return found + self.run(limit - found[0]["seconds"], Command("ncu-full", full, limit))

    # Check --------------------------------------------------------------------------------------------------------

    def tests(self, limit: float) -> Results:
        """The tests that need a GPU, on the default stream and on another one, beside memcheck."""
        commands = []
        if importlib.util.find_spec("pytest") is None:
            self.record.log("no pytest: the tests of the GPU are left out")
        else:
            for name, chosen in (("default stream", "not own"), ("own stream", "own")):
                commands.append(Command(f"tests, {name}", self.pytest_words(chosen), limit, PYTEST_ENVIRONMENT))
        if (memcheck := self.sanitizer("memcheck", limit)) is not None:
            commands.append(memcheck)
        found = self.run(limit, *commands) if commands else skipped("tests", "neither pytest nor compute-sanitizer")
        return self.with_faults(found)

    def pytest_words(self, chosen: str) -> list[str]:
        """The command line of pytest, on several cores if xdist is installed."""
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "on_gpu.pytest_lines"]
        # A hanging test must not use up the time of all; after a fault of the GPU, every later test fails.
        words += ["--tb=short", "-o", "timeout=60", "--maxfail=25", "-m", "gpu", "-k", chosen]
        if importlib.util.find_spec("xdist") is not None:
            words += ["-n", str(max(1, min(4, (os.cpu_count() or 1) // 3)))]
        if self.dry:
            words += ["--collect-only"]
        return [*words, *(path for path in GPU_TESTS if (ROOT / path).exists())]

    def sanitizer(self, tool: str, limit: float) -> Command | None:
        """Every operator once under a tool of compute-sanitizer, which slows kernels a hundredfold."""
        path = find("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")
        if path is None:
            return None
        # The filter matches mangled names. Kernels of torch are excluded: none writes memory that ours read.
        options = ["--tool", tool, "--error-exitcode", FOUND, "--kernel-name", "kns=hiermt", "--print-limit", "20"]
        words = [path, *options, sys.executable, "-m", "on_gpu.operators"]
        words += ["--device", "cpu", "--only", "decision"] if self.dry else []
        words += ["--dtypes", "float32", *(["bfloat16", "float64"] if tool == "memcheck" else [])]
        return Command(tool, words, limit, SANITIZER_ENVIRONMENT)

    def sanitize(self, tool: str, limit: float) -> Results:
        command = self.sanitizer(tool, limit)
        if command is None:
            return skipped(tool, "compute-sanitizer is not installed")
        return self.with_faults(self.run(limit, command))

    def with_faults(self, found: Results) -> Results:
        """Adds what the tools of compute-sanitizer counted; a tool that ended without a count is an error."""
        for one in found:
            if one["name"] not in TOOLS or "skipped" in one:
                continue
            count = self.record.summaries.get(one["name"])
            one["faults"] = count
            if count or (count is None and one["exit"] in (0, int(FOUND))):
                text = "ended without a summary" if count is None else f"{count} faults"
                self.record.current.setdefault("errors", []).append(f"{one['name']}: {text}")
        return found

    # Peers --------------------------------------------------------------------------------------------------------

    def competitor(self, name: str, limit: float) -> Results:
        """Times a competitor, which hands over each figure as it has it."""
        return self.run(limit, python(name, limit, "-m", "on_gpu.figures", name, dry=self.dry))

    def pyg(self, limit: float) -> Results:
        if importlib.util.find_spec("torch_geometric") is None:
            return skipped("pyg", "PyG is not installed")
        return self.competitor("pyg", limit)

    def twin(self, limit: float) -> Results:
        return self.competitor("twin", limit)

    def job(self, limit: float) -> Results:
        """The user's job, with hiermt and scaled with PyG eager."""
        return self.run(limit, python("job", limit, "-m", "on_gpu.job", dry=self.dry))


# Group, its seconds, and its stages: name, most seconds, job, whether a fault of it is one of the kernels.
Stage = tuple[str, float, Callable[[Stages, float], Results], bool]
GROUPS: dict[str, tuple[float, Sequence[Stage]]] = {
    "first": (
        240,
        [
            ("operators", 45, Stages.operators, True),
            ("headline", 45, Stages.headline, True),
            ("native", 70, Stages.native, True),
            ("kernels", 30, Stages.kernels, True),
            ("ncu", 240, Stages.ncu, False),
        ],
    ),
    "check": (
        230,
        [
            ("tests and memcheck", 120, Stages.tests, True),
            ("racecheck", 60, lambda stages, limit: stages.sanitize("racecheck", limit), True),
            ("initcheck", 40, lambda stages, limit: stages.sanitize("initcheck", limit), True),
            ("synccheck", 230, lambda stages, limit: stages.sanitize("synccheck", limit), True),
        ],
    ),
    "peers": (
        310,
        [
            ("pyg", 100, Stages.pyg, True),
            ("twin", 70, Stages.twin, True),
            ("job", 310, Stages.job, True),
        ],
    ),
}
# Before the stages of any group; without it there is nothing to run.
BUILD_S = 130.0
