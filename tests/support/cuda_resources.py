"""Resources of every CUDA kernel as ptxas reports them: registers, stack and spills, and the occupancy they allow.

As a script it prints a table and exits with 1 if a hot kernel uses local memory::

    python tests/support/cuda_resources.py [--arch 80 90 100 120] [--all]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 100, 120)
REGISTERS_PER_MULTIPROCESSOR = 65536
MAX_WARPS = 64


# Bytes of stack, stores and loads together, to which the kernels are held that do not fit yet, by the start of a name
# and the architecture. With a block less on a multiprocessor they would fit; which is better, a GPU must say.
_SPILLS = {
    "gatv2_conv_bwd_source_kernel<": {80: 24},
    "gatv2_stack_bwd_kernel<Half, 16, false>": {80: 24},
    "gatv2_stack_bwd_kernel<float, 16, false>": {80: 24},
    "gatv2_stack_bwd_kernel<float, 32, false>": {100: 32, 120: 32},
    "gatv2_stack_bwd_kernel<float, 64, false>": {90: 136, 120: 32},
    "gatv2_stack_fwd_kernel<BFloat16, 16, 1>": {100: 16},
    "gatv2_stack_fwd_kernel<BFloat16, 64, 4>": {100: 104, 120: 76},
    "gatv2_stack_fwd_kernel<Half, 16, 1>": {100: 16},
    "gatv2_stack_fwd_kernel<Half, 64, 4>": {100: 104, 120: 76},
    "gatv2_stack_fwd_kernel<float, 16, 1>": {120: 24},
    "gatv2_stack_fwd_kernel<float, 64, 4>": {80: 64, 90: 72, 100: 80, 120: 72},
    "gated_scan_bwd_kernel<float, ScanTeam<float, 0, (WeightsIn)1, true>, false>": {80: 16},
    "gated_scan_bwd_kernel<float, ScanTeam<float, 0, (WeightsIn)1, true>, true>": {80: 116, 90: 88},
    "gated_scan_bwd_kernel<float, ScanTeam<float, 0, (WeightsIn)2, true>, false>": {80: 16},
    "gated_scan_bwd_kernel<float, ScanTeam<float, 0, (WeightsIn)2, true>, true>": {80: 184, 90: 16},
    "gcn_conv_bwd_degree_kernel<Half, 8>": {100: 20, 120: 20},
    "gcn_stack_fwd_kernel<float, 64, 4>": {80: 16, 90: 40},
    "linear_kernel<float, false, 3, GateRows<float>": {90: 24, 100: 164, 120: 116},
    "scan_backward_kernel<float, false, false>": {80: 20, 90: 84, 100: 16},
    "scan_backward_kernel<float, false, true>": {100: 28},
}


class Kernel(NamedTuple):
    """One kernel for one architecture. Stack and spills are bytes per thread."""

    name: str
    arch: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    # Bytes of a block, beside what a launch asks for.
    shared: int

    @property
    def hot(self) -> bool:
        """Whether the kernel must not use local memory. float64 is supported, not tuned."""
        return "double" not in self.name

    @property
    def known_to_spill(self) -> bool:
        """Whether it is known to spill as much on its architecture."""
        most = [bytes_of.get(self.arch, 0) for name, bytes_of in _SPILLS.items() if self.name.startswith(name)]
        return self.local <= max(most, default=-1)

    @property
    def local(self) -> int:
        return self.stack + self.spill_stores + self.spill_loads

    @property
    def warps(self) -> int:
        """Warps of a multiprocessor as limited by registers, which are allocated in units of 256 per warp."""
        per_warp = -(-self.registers * 32 // 256) * 256
        return min(MAX_WARPS, REGISTERS_PER_MULTIPROCESSOR // per_warp)


def nvcc() -> str | None:
    """Path of nvcc: from PATH, or the default location of the toolkit."""
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def compile_one(source: Path, arch: int) -> list[Kernel]:
    """Kernels of `source`, compiled for one architecture."""
    compiler = nvcc()
    assert compiler is not None
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "--expt-relaxed-constexpr"]
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v", "-cubin"]
        command += [str(source), "-o", str(Path(folder) / "out.cubin")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{source.name} for sm_{arch}:\n{result.stderr}")
    return parse(result.stderr)


def parse(report: str) -> list[Kernel]:
    """Kernels in the output of ``ptxas -v``."""
    entry = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'")
    memory = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
    found: list[Kernel] = []
    name, arch, local = "", 0, (0, 0, 0)
    for line in report.splitlines():
        if match := entry.search(line):
            name, arch, local = match[1], int(match[2]), (0, 0, 0)
        elif match := memory.search(line):
            local = (int(match[1]), int(match[2]), int(match[3]))
        elif match := re.search(r"Used (\d+) registers", line):
            static = re.search(r"(\d+) bytes smem", line)
            found.append(Kernel(name, arch, int(match[1]), *local, int(static[1]) if static else 0))
    return [kernel._replace(name=plain) for kernel, plain in zip(found, demangle(k.name for k in found), strict=True)]


def demangle(names: Iterable[str]) -> list[str]:
    """Names as in the source, without namespaces and parameters."""
    filt = shutil.which("c++filt")
    wanted = list(names)
    if filt is None or not wanted:
        return wanted
    text = subprocess.run([filt], input="\n".join(wanted), capture_output=True, text=True, check=True).stdout
    return [short(line) for line in text.splitlines()]


def short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|hiermt::cuda::|hiermt::|\([a-z ]+\)", "", name)
    depth = 0
    for i, char in enumerate(name):
        depth += (char == "<") - (char == ">")
        if char == "(" and depth == 0:
            name = name[:i]
            break
    return name.removeprefix("void ").strip()


def selected_architectures(environment: Mapping[str, str] = os.environ) -> tuple[int, ...]:
    """The architectures of :data:`ARCHITECTURES` that ``TORCH_CUDA_ARCH_LIST`` selects; all if it selects none."""
    listed = environment.get("TORCH_CUDA_ARCH_LIST", "")
    wanted = {int(major + minor) for major, minor in re.findall(r"(\d+)\.(\d)", listed)}
    return tuple(arch for arch in ARCHITECTURES if arch in wanted) if wanted else ARCHITECTURES


def of_build() -> list[Kernel]:
    """Kernels of the last build; empty if a log is missing or older than its source."""
    return [kernel for text in build_logs().values() for kernel in parse(text)]


def build_logs() -> dict[str, str]:
    """What nvcc said of each source in the last build; empty if that is older than a source."""
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
    objects = {source.name: built(source) for source in sources}
    logs = {name: Path(f"{found}.log") for name, found in objects.items() if found is not None}
    return {name: log.read_text() for name, log in logs.items()} if len(logs) == len(sources) else {}


def built(source: Path) -> Path | None:
    """The object of a source of ``csrc/cuda`` in a build; ``None`` if the source has changed since or was not built."""
    for folder in (ROOT / "build").glob("*/CMakeFiles/hiermt_cuda.dir"):
        found = folder / f"{source.relative_to(ROOT)}.o"
        if found.exists() and found.stat().st_mtime >= max(path.stat().st_mtime for path in included(source)):
            return found
    return None


def included(source: Path) -> dict[Path, str]:
    """The texts of `source` and of the project files that it includes, directly or not."""
    found: dict[Path, str] = {}
    left = [source.resolve()]
    while left:
        path = left.pop()
        if path in found or not path.exists():
            continue
        found[path] = path.read_text()
        names = re.findall(r'^#include "([^"]+)"', found[path], re.M)
        left += [(folder / name).resolve() for name in names for folder in (path.parent, ROOT / "csrc")]
    return found


def collect(architectures: Sequence[int] = ARCHITECTURES) -> list[Kernel]:
    """Every kernel of ``csrc/cuda`` for every architecture."""
    jobs = [(source, arch) for source in sorted((ROOT / "csrc" / "cuda").rglob("*.cu")) for arch in architectures]
    with ThreadPoolExecutor(2) as pool:
        return [kernel for kernels in pool.map(lambda job: compile_one(*job), jobs) for kernel in kernels]


def table(kernels: Iterable[Kernel]) -> str:
    """A Markdown table with a row per kernel and architecture."""
    rows = ["| kernel | sm | registers | warps by registers | stack | spills |", "|---|---|---|---|---|---|"]
    for k in kernels:
        spills = f"{k.spill_stores} + {k.spill_loads}"
        rows.append(f"| {k.name} | {k.arch} | {k.registers} | {k.warps} | {k.stack} | {spills} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--all", action="store_true", help="all kernels, not only the float32 ones")
    options = parser.parse_args()
    kernels = collect(options.arch)
    shown = [k for k in kernels if options.all or re.search(r"<float|<int|^\w+$", k.name)]
    print(table(sorted(shown, key=lambda k: (k.name, k.arch))))
    bad = [k for k in kernels if k.hot and k.local and not k.known_to_spill]
    print(f"{len(kernels)} kernels, {len(bad)} hot ones with local memory", file=sys.stderr)
    if bad:
        print(table(bad), file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
