"""Builds the CUDA kernels and the host entries for the host (``shim/``) and runs operators, one fork per call.

:class:`Simt` redirects every call of ``torch.ops.hiermt`` within it, so that whatever calls an operator runs on the
kernels: :mod:`hiermt.ops` with its gradients, a problem of :mod:`support.problems`. The program is built with
AddressSanitizer and UndefinedBehaviorSanitizer; a fault of a kernel ends the fork, and :class:`SimtFault` carries what
it said.
"""

from __future__ import annotations

import fcntl
import functools
import io
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


# By torch's numbers of them.
DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64]
DTYPES += [torch.complex32, torch.complex64, torch.complex128, torch.bool]
DTYPES += [torch.qint8, torch.quint8, torch.qint32, torch.bfloat16]
# A tensor keeps its distance from an address of such alignment.
ALIGNMENT = 64


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


class SimtFault(RuntimeError):
    """The harness or a sanitizer ended the process."""


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
        linked = [gxx, *SANITIZERS, "-Wl,--noinhibit-exec", *map(str, objects), "-o", str(partial)]
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


class Result(NamedTuple):
    """Tensors that an operator returned, the kernels it launched, and the most bytes that it had allocated at once."""

    tensors: list[Tensor]
    launches: int
    peak_bytes: int


def send(op: str, arguments: Sequence[Any], environment: dict[str, str] | None = None) -> Result:
    """Runs `op` in a fork of its own with arguments in the order of its schema.

    A tensor is sent with its strides and the bytes of its storage from its first element on. All tensors count as
    CUDA tensors but the last of a list of int32, the blocks of a CSR. What the operator allocates starts as NaN bits.

    Raises:
        SimtFault: a detector fired.
        RuntimeError: the operator refused its arguments or returned an error.
    """
    message = io.BytesIO()
    for argument in arguments:
        _pack(message, argument)
    from simt.server import started  # here, because this file runs as a script as well

    variables = {name: value for name, value in os.environ.items() if name.startswith("HIERMT_SIMT_")}
    variables |= ENVIRONMENT | (environment or {})
    server = started(build(), frozenset(variables.items()))
    code, out, err = server.call(op, message.getvalue())
    if code != 0:
        raise SimtFault(f"{op}: exit {code}: {err.decode(errors='replace')[:4000]}")
    status, launches, peak_bytes = struct.unpack_from("<qqq", out)
    if status != 0:
        raise RuntimeError(out[24:].decode(errors="replace"))
    return Result(_unpack(out, 24), launches, peak_bytes)


def _pack(message: io.BytesIO, value: Any, cuda: bool = True) -> None:
    if value is None:
        message.write(b"n")
    elif isinstance(value, float):
        message.write(struct.pack("<cd", b"d", value))
    elif isinstance(value, int):
        message.write(struct.pack("<cq", b"i", value))
    elif isinstance(value, Tensor):
        data, offset = _bytes(value)
        sizes = [*value.shape, *value.stride()]
        head = [DTYPES.index(value.dtype), value.dim(), *sizes, cuda, offset % ALIGNMENT, len(data)]
        message.write(struct.pack(f"<c{len(head)}q", b"t", *head))
        message.write(data)
    else:
        message.write(struct.pack("<cq", b"l", len(value)))
        blocks = len(value) - 1 if value and all(one.dtype == torch.int32 for one in value) else -1
        for i, one in enumerate(value):
            _pack(message, one, i != blocks)


def _bytes(tensor: Tensor) -> tuple[bytes, int]:
    """Bytes of the storage from the tensor's first element on, and how many are before it."""
    storage = tensor.untyped_storage()
    offset = tensor.storage_offset() * tensor.element_size()
    raw = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.size(),))  # type: ignore[call-overload]
    return raw[offset:].numpy().tobytes(), offset


def _unpack(reply: bytes, at: int) -> list[Tensor]:
    tensors = []
    while at < len(reply):
        kind, dims = struct.unpack_from("<qq", reply, at)
        shape = struct.unpack_from(f"<{dims}q", reply, at + 16)
        at += 16 + 8 * dims
        tensor = torch.empty(shape, dtype=DTYPES[kind])
        size = tensor.numel() * tensor.element_size()
        if size:
            tensor = torch.frombuffer(bytearray(reply[at : at + size]), dtype=tensor.dtype).reshape(shape)
        tensors.append(tensor)
        at += size
    return tensors


class Simt(TorchDispatchMode):
    """Within it, operators of the namespace ``hiermt`` run in the harness, forward and backward.

    Args:
        environment (dict, optional): of the process: ``HIERMT_SIMT_ORDER``, ``HIERMT_SIMT_SHARED_BYTES``, ...
        tf32 (bool): allow the operators TF32. (default: ``False``)

    ``calls`` lists the operators that ran and the kernels each launched, ``peak_bytes`` the most that each had
    allocated at once, results and workspace.
    """

    def __init__(self, environment: dict[str, str] | None = None, tf32: bool = False) -> None:
        super().__init__()
        self.environment, self.tf32 = environment, tf32
        self.calls: list[tuple[str, int]] = []
        self.peak_bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "hiermt":
            return func(*args, **(kwargs or {}))
        op = func._schema.name.removeprefix("hiermt::")
        given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | (kwargs or {})
        if "tf32" in given:
            given["tf32"] = self.tf32
        values = [given.get(one.name, one.default_value) for one in func._schema.arguments]
        floats = [isinstance(one.type, torch.FloatType) for one in func._schema.arguments]
        values = [float(value) if wide else value for value, wide in zip(values, floats, strict=True)]
        result = send(op, values, self.environment)
        self.calls.append((op, result.launches))
        self.peak_bytes.append(result.peak_bytes)
        returns = func._schema.returns
        if len(returns) > 1:
            return tuple(result.tensors)
        return result.tensors if isinstance(returns[0].type, torch.ListType) else result.tensors[0]


if __name__ == "__main__" and compiler() is not None:
    build()
    build(PTX_TOOL)
