"""PTX of every kernel, as nvcc makes it for compute_90, and where in it each kernel of the SIMT runner is."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from simt import program
from support import cuda_resources

ROOT = program.ROOT
BUILD = ROOT / "build" / "ptx"
# The flags of the build (CMakeLists.txt).
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-arch=compute_90"]
# With source lines (ptx/lines.py), which no build holds.
LINES = os.environ.get("HIERMT_PTX_LINES") == "1"
if LINES:
    FLAGS.append("-lineinfo")
SOURCES = [source for source in program.SOURCES if source.suffix == ".cu"]
INCLUDE = [ROOT / "csrc"]


class Kernel(NamedTuple):
    """A kernel: its name in C++ without namespaces, its symbol, the file of its text and the place there."""

    name: str
    symbol: str
    path: Path
    begin: int
    size: int


def nvcc() -> str | None:
    """nvcc, or ``None``."""
    standard = "/usr/local/cuda/bin/nvcc"
    return shutil.which("nvcc") or (standard if os.access(standard, os.X_OK) else None)


def wanted() -> bool:
    """Whether HIERMT_PTX=1 asks for all tests on PTX, which run for many minutes: ``make ptx``."""
    return os.environ.get("HIERMT_PTX") == "1"


def missing() -> str | None:
    """Why PTX cannot be made or run here; ``None`` if it can."""
    if program.compiler() is None:
        return "needs g++ on x86-64"
    return "needs nvcc" if nvcc() is None else None


def _place(source: Path) -> Path:
    """Where the PTX of a source is kept. The name holds the hash of what it is made of, so that it is made once."""
    texts = cuda_resources.included(source)
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(texts):
        digest.update(texts[path].encode())
    return BUILD / f"{source.stem}.{digest.hexdigest()[:16]}.ptx"


def _ptx(source: Path) -> Path:
    """PTX of a source: of the build, else of a compilation of its own."""
    target = _place(source)
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        text = of_build(source)
        if text is None:
            compiler = nvcc()
            assert compiler is not None
            include = [f"-I{folder}" for folder in INCLUDE]
            subprocess.run([compiler, *FLAGS, *include, "-ptx", str(source), "-o", str(partial)], check=True)
        else:
            partial.write_bytes(text)
        for old in BUILD.glob(f"{source.stem}.*.ptx"):
            old.unlink()
        partial.replace(target)
    return target


def of_build(source: Path) -> bytes | None:
    """The PTX for compute_90 in the object of a source, where the build left it uncompressed, as ``make test`` does."""
    built = cuda_resources.built(source)
    if built is None or LINES:
        return None
    found = re.search(rb"\n(\.version [\d.]+\n\.target sm_90\n[^\0]+)", built.read_bytes())
    return found[1] if found else None


@cache
def left_out() -> str | None:
    """Why the tests on PTX that are part of every run are left out: only where they need no second compilation."""
    listed = [source for source in SOURCES if ROOT / "csrc" in source.parents]
    if missing() is None and not (wanted() or all(_place(one).exists() or of_build(one) for one in listed)):
        return "the build holds no PTX for compute_90: make test"
    return missing()


def _kernels_of(path: Path) -> list[tuple[str, int, int]]:
    """Symbol, begin and size of each kernel in a PTX file."""
    text = path.read_bytes()
    starts = [
        (m.group(1).decode(), m.start()) for m in re.finditer(rb"^(?:\.visible |\.weak )?\.entry (\w+)", text, re.M)
    ]
    ends = [*(begin for _, begin in starts), len(text)][1:]
    return [(symbol, begin, end - begin) for (symbol, begin), end in zip(starts, ends, strict=True)]


def plain_names(symbols: list[str]) -> list[str]:
    """Names in C++ without namespaces, return type and arguments: what nvcc's and g++'s symbols agree on."""
    text = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    return [_plain(name) for name in text.splitlines()]


def _plain(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|\b_GLOBAL__N__\w+::|\bhiermt::|\bcuda::", "", name.removeprefix("void "))
    depth = 0
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            name = name[:i]
            break
    return name.replace(" ", "")


@cache
def kernels() -> tuple[Kernel, ...]:
    """Every kernel that nvcc makes; compiles what no build holds. Of several processes one compiles."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / ".lock-nvcc", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(2) as pool:
            # The longest first.
            paths = list(pool.map(_ptx, sorted(SOURCES, key=lambda source: -source.stat().st_size)))
    places = [(path, *one) for path in paths for one in _kernels_of(path)]
    names = plain_names([symbol for _, symbol, _, _ in places])
    return tuple(
        Kernel(name, symbol, path, begin, size) for name, (path, symbol, begin, size) in zip(names, places, strict=True)
    )


@cache
def addresses() -> dict[int, str]:
    """Name of the kernel at each address of the program, counted from the start of the program."""
    listed = subprocess.run(["nm", str(program.build())], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listed.splitlines() if len(line.split()) == 3]
    start = next(int(at, 16) for at, _, symbol in found if symbol == "__executable_start")
    # Not the lambdas inside a kernel.
    found = [line for line in found if "_kernel" in line[2] and "Ul" not in line[2] and line[1] in "tTwW"]
    names = plain_names([symbol for _, _, symbol in found])
    whole = re.compile(r"\w+_kernel(<.*>)?")
    located = zip(found, names, strict=True)
    return {int(at, 16) - start: name for (at, _, _), name in located if whole.fullmatch(name)}


@cache
def runner_map() -> Path:
    """The file for HIERMT_SIMT_PTX."""
    by_name = {kernel.name: kernel for kernel in kernels()}
    lines = []
    for at, name in sorted(addresses().items()):
        if name in by_name:
            kernel = by_name[name]
            lines.append(f"{at:x} {kernel.begin} {kernel.size} {kernel.path}\n")
    path = BUILD / "kernels.txt"
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text("".join(lines))
    partial.replace(path)
    return path


if __name__ == "__main__" and left_out() is None:
    print(runner_map())
