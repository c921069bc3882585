"""The program that runs the CUDA kernels and the host entries on the host (``shim/``), and how it is built.

    PYTHONPATH=tests python -m simt.program

It knows no torch, so that a build can begin beside the installation of an environment. The program is built with
AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# Without what asks torch for its stream and its threads, and the driver.
SOURCES = [
    *sorted((ROOT / "tests" / "simt" / "shim").glob("*.c*")),
    *sorted(path for path in (ROOT / "csrc" / "host").glob("*.cpp") if path.stem not in ("cuda_call", "thread_pool")),
    *sorted(path for path in (ROOT / "csrc" / "cuda").rglob("*.cu") if path.name != "runtime.cu"),
]
# Runs what nvcc made of the kernels where HIERMT_SIMT_PTX names it, see tests/ptx.
MACHINE = sorted((ROOT / "tests" / "ptx" / "vm").glob("*.cpp"))
COMMON = [
    *("-std=c++17", "-ffp-contract=off", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-DHIERMT_SIMT", "-DHIERMT_WITH_CUDA=1", "-Itests/simt/shim", "-Itests/ptx/vm", "-Icsrc"),
]
# Of UBSan, not what ends in a bad access, which AddressSanitizer sees: that is a third of the time to compile.
LEFT_OUT = "-fno-sanitize=null,vptr,object-size,nonnull-attribute,returns-nonnull-attribute,return,pointer-overflow"
SANITIZERS = ("-fsanitize=address,undefined", LEFT_OUT, "-fno-sanitize-recover=all")
# The machine asks AddressSanitizer about each address of a kernel, which needs its allocator alone; what switches
# threads and exchanges their values touches no memory of a kernel. Both run more often than anything else.
PLAIN = [*MACHINE, *(ROOT / "tests" / "simt" / "shim" / name for name in ("scheduler.cpp", "tensor_core.cpp"))]
PLAIN_FLAGS = ["-O3", "-march=native", "-fno-strict-aliasing", "-fno-math-errno"]


class Runner(NamedTuple):
    """A program: its folder, its sources and its name."""

    folder: Path
    sources: tuple[Path, ...]
    name: str = "runner"


FLAGS = ["-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZERS]
# Runs operators.
OPERATORS = Runner(ROOT / "build" / "simt", (*MACHINE, *SOURCES))
# The machine alone, for its own tests.
PTX_TOOL = OPERATORS._replace(sources=(*MACHINE, ROOT / "tests" / "ptx" / "tool.cpp"), name="tool")


def compiler() -> str | None:
    """A GNU C++ compiler on x86-64, which the stack switch is written for, or ``None``."""
    return shutil.which("g++") if os.uname().machine == "x86_64" else None


@functools.cache
def build(runner: Runner = OPERATORS) -> Path:
    """Compiles what has changed; returns the program. Of several processes one compiles, and each looks once."""
    runner.folder.mkdir(parents=True, exist_ok=True)
    with open(runner.folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(runner)


def _build(runner: Runner) -> Path:
    gxx = compiler()
    assert gxx is not None
    objects = [runner.folder / f"{source.name}.o" for source in runner.sources]

    def compile_one(source: Path, target: Path) -> None:
        if _is_new(target):
            return
        partial, listed = target.with_suffix(f".{os.getpid()}.o"), target.with_suffix(".d")
        relative = str(source.relative_to(ROOT))
        flags = [*COMMON, *(PLAIN_FLAGS if source in PLAIN else FLAGS), "-MMD", "-MF", str(listed)]
        subprocess.run([gxx, *flags, "-x", "c++", "-c", relative, "-o", str(partial)], check=True, cwd=ROOT)
        partial.replace(target)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, runner.sources, objects))
    program = runner.folder / runner.name
    # Runners share objects, so that another one may have compiled them.
    if not program.exists() or program.stat().st_mtime < max(one.stat().st_mtime for one in objects):
        partial = program.with_suffix(f".{os.getpid()}")
        # The list of launch bounds names kernels that the linker drops as duplicates; their entries become zero.
        # A program of fixed addresses has 16 MB less to copy in each fork: a quarter of a call without a kernel.
        linked = [gxx, *SANITIZERS, "-Wl,--noinhibit-exec", "-no-pie", *map(str, objects), "-o", str(partial)]
        subprocess.run(linked, check=True, stderr=subprocess.DEVNULL)
        partial.replace(program)
    return program


def _is_new(target: Path) -> bool:
    """Whether an object is newer than every file that the compiler read for it, and than its flags."""
    listed = target.with_suffix(".d")
    if not (target.exists() and listed.exists()):
        return False
    read = [ROOT / name for name in listed.read_text().replace("\\\n", " ").split()[1:]]
    made = target.stat().st_mtime
    return all(path.exists() and path.stat().st_mtime < made for path in [*read, Path(__file__)])


if __name__ == "__main__" and compiler() is not None:
    build()
    build(PTX_TOOL)
