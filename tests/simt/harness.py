"""Builds the CUDA kernels for the host (``shim/``) and runs them, one process per call.

The process is built with AddressSanitizer and UndefinedBehaviorSanitizer; a fault of a kernel ends it, and
:class:`SimtFault` carries what it said.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "simt"
# runtime.cu speaks to the driver alone and holds no kernel.
SOURCES = sorted((ROOT / "tests" / "simt" / "shim").glob("*.c*")) + sorted(
    path for path in (ROOT / "csrc" / "cuda").rglob("*.cu") if path.name != "runtime.cu"
)
FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fPIC"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-DHIERMT_SIMT", f"-I{ROOT / 'tests' / 'simt' / 'shim'}", f"-I{ROOT / 'csrc'}"),
]
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


class SimtFault(RuntimeError):
    """The harness or a sanitizer ended the process."""


def compiler() -> str | None:
    """A GNU C++ compiler on x86-64, which the stack switch is written for, or ``None``."""
    return shutil.which("g++") if os.uname().machine == "x86_64" else None


def build() -> Path:
    """Compiles what changed since the last call; returns the runner. Of several processes one compiles."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build()


def _build() -> Path:
    gxx = compiler()
    assert gxx is not None
    headers = [*ROOT.glob("tests/simt/shim/*.h"), *ROOT.glob("csrc/**/*.h")]
    headers += [*ROOT.glob("csrc/cuda/**/*.cuh"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in headers)
    objects = [BUILD / f"{source.name}.o" for source in SOURCES]

    def compile_one(source: Path, target: Path) -> bool:
        if target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime):
            return False
        partial = target.with_suffix(f".{os.getpid()}.o")
        subprocess.run([gxx, *FLAGS, "-x", "c++", "-c", str(source), "-o", str(partial)], check=True)
        partial.replace(target)
        return True

    with ThreadPoolExecutor(2) as pool:
        changed = list(pool.map(compile_one, SOURCES, objects))
    runner = BUILD / "runner"
    if any(changed) or not runner.exists():
        partial = BUILD / f"runner.{os.getpid()}"
        subprocess.run([gxx, "-fsanitize=address,undefined", *map(str, objects), "-o", str(partial)], check=True)
        partial.replace(runner)
    return runner


def run(
    op: str,
    dtype: torch.dtype,
    integers: Sequence[int],
    inputs: Sequence[Tensor | None],
    outputs: Sequence[tuple[tuple[int, ...], torch.dtype] | Tensor | None],
    environment: dict[str, str] | None = None,
) -> list[Tensor | None]:
    """Runs the launcher `op`, which reads its arguments in the order ``shim/runner.cpp`` names them.

    An input is sent as the bytes of its whole storage, so a strided view arrives with its holes. An output is a
    shape and a dtype, or ``None`` for a null pointer. Outputs start as NaN bits.

    Raises:
        SimtFault: a detector fired.
    """
    message = [struct.pack(f"<q{len(integers)}q", len(integers), *integers), struct.pack("<q", len(inputs))]
    for tensor in inputs:
        raw = None if tensor is None else _bytes(tensor)
        message.append(struct.pack("<q", -1 if raw is None else len(raw)))
        message.append(raw or b"")
    message.append(struct.pack("<q", len(outputs)))
    sizes = []
    for output in outputs:
        size = -1 if output is None else _count(output[0]) * torch.empty(0, dtype=output[1]).element_size()
        sizes.append(size)
        message.append(struct.pack("<q", size))
    name = str(dtype).removeprefix("torch.")
    result = subprocess.run(
        [str(build()), op, name],
        input=b"".join(message),
        capture_output=True,
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
        timeout=300,
        check=False,
    )
    if result.returncode != 0:
        raise SimtFault(f"{op} [{name}] exit {result.returncode}: {result.stderr.decode(errors='replace')[:4000]}")
    (status,) = struct.unpack_from("<q", result.stdout)
    if status != 0:
        raise ValueError(f"{op} [{name}]: the launcher returned error {status}")
    received: list[Tensor | None] = []
    at = 8
    for output, size in zip(outputs, sizes, strict=True):
        if output is None:
            received.append(None)
            continue
        flat = torch.frombuffer(bytearray(result.stdout[at : at + size]), dtype=output[1]) if size else torch.empty(0)
        received.append(flat.to(output[1]).reshape(output[0]))
        at += size
    return received


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.as_strided((tensor.untyped_storage().size() // tensor.element_size(),), (1,), 0)
    return flat[tensor.storage_offset() :].contiguous().view(torch.uint8).numpy().tobytes()


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


if __name__ == "__main__" and compiler() is not None:
    build()
