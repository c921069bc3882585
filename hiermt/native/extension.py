"""Loads the library of the native operators, or stores the reason of the failure.

The import of this module never raises and never builds. A library that is missing, corrupt, built for another machine,
or older than the package causes one warning with cause and fix; the pure-PyTorch twins then run.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import struct
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from hiermt._version import __version__
from hiermt.native import remedy

OLDEST_TORCH = (2, 11)
# All operators of csrc/schema.cpp: a binary without one of them is older than the sources.
OPERATORS = (
    "graph_prepare",
    "conv_stack",
    "conv_stack_backward",
    "gated_scan",
    "gated_scan_backward",
    "tgcn_layer",
    "tgcn_layer_backward",
    "decision",
    "decision_backward",
    "decision_from_logits",
    "tgcn_layer_decision",
    "multitask_loss",
    "multitask_loss_backward",
)
_LIBRARY = "libhiermt.dylib" if sys.platform == "darwin" else "libhiermt.so"


class NativeUnavailableWarning(RuntimeWarning):
    """The compiled extension cannot be used; results are the same, but slower."""


@dataclass(frozen=True)
class NativeStatus:
    """Status of the native library.

    Attributes:
        available: whether the native operators can be called.
        reason: why they cannot, ``None`` if they can.
        fix: how to make them available, ``None`` if they are.
        path: file of the binary that was loaded or tried.
        build: build information of the binary, empty if it was not loaded.
        left_out: reason for each part that the build left out (``extension``, ``cuda``).
    """

    available: bool
    reason: str | None
    fix: str | None
    path: str | None
    build: dict[str, Any]
    left_out: dict[str, str]


def native_status() -> NativeStatus:
    """The status of the extension, which was loaded with hiermt."""
    return _status


def why_not_native(device_type: str) -> str | None:
    """Why the native operators cannot run on devices of this type; ``None`` if they can."""
    if not _status.available:
        return _status.reason
    if device_type == "cpu":
        return None
    if device_type != "cuda":
        return f"there are no native operators for {device_type} devices"
    if _status.build["cuda"] is None:
        why = _status.left_out.get("cuda")
        return "the extension was built without CUDA kernels" + (f": {why}" if why else "")
    if _without_cuda_kernel:
        return f"there are no CUDA kernels yet for {', '.join(_without_cuda_kernel)}"
    return None


def toolkit_mismatch() -> str | None:
    """What a binary whose toolkit is of a later CUDA than torch needs; ``None`` for any other."""
    ours, theirs = _status.build.get("cuda"), torch.version.cuda
    if not ours or theirs is None or _major(ours) <= _major(theirs):
        return None
    return (
        f"the CUDA kernels were built with CUDA {ours}, this torch is for CUDA {theirs}: they need a driver for CUDA "
        f"{_major(ours)}, which torch does not; if they do not run, set CUDA_HOME to a toolkit of CUDA {theirs} and "
        f"rebuild, or install torch for CUDA {_major(ours)}"
    )


def why_not_gpu(index: int | None) -> str | None:
    """Why the GPU `index` (``None``: the current one) cannot run the kernels; ``None`` if it can.

    The first call for a device runs a tiny operator: a matching architecture does not imply that the driver supports
    the CUDA version of the kernels.
    """
    if index is not None and index in _reasons:
        return _reasons[index]
    if not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device() if index is None else index
    if index not in _reasons:
        # A capture would record the trial, and a failure in it would end the capture and say nothing about the GPU.
        if torch.cuda.is_current_stream_capturing():
            return None
        _reasons[index] = _try_gpu(index)
    return _reasons[index]


def _try_gpu(index: int) -> str | None:
    capability = torch.cuda.get_device_capability(index)
    built = tuple(_status.build["cuda_architectures"])
    if any(_runs(architecture, *capability) for architecture in built):
        return _why_trial_fails(torch.device("cuda", index))
    return (
        f"the CUDA kernels were built for {', '.join(built)}, this GPU has compute capability "
        f"{'.'.join(map(str, capability))}; the sources take 8.0 and newer, chosen by TORCH_CUDA_ARCH_LIST"
    )


def _why_trial_fails(device: torch.device) -> str | None:
    """Runs the smallest operator on a GPU; returns the reason of a failure, ``None`` without one."""
    with unset_fake_temporarily(), torch.no_grad():
        try:
            logits = torch.zeros(1, 2, dtype=torch.float32, device=device)
        except Exception:  # torch itself cannot run there; its own call reports that
            return None
        try:
            torch.ops.hiermt.decision_from_logits(logits, logits, 0.5, 4)
        except RuntimeError as error:
            mismatch = toolkit_mismatch()
            return (
                f"a first operator failed on {device}: {_first_line(error)}; the usual cause is a driver older than "
                f"CUDA {_status.build.get('cuda')}, which the kernels were built with: update the driver, or rebuild "
                "with an older CUDA toolkit" + (f" ({mismatch})" if mismatch else "")
            )
    return None


def _major(version: str) -> int:
    return int(version.split(".")[0])


def _runs(architecture: str, major: int, minor: int) -> bool:
    """Whether code for an architecture, as CMake spells it, runs on a GPU of this compute capability."""
    number, feature, kind = re.fullmatch(r"(\d+)([af]?)(-\w+)?", architecture).groups()  # type: ignore[union-attr]
    built = divmod(int(number), 10)
    if feature:
        return built == (major, minor)
    # Machine code runs on its own generation, PTX on every later one too.
    return (built[0] == major and built[1] <= minor) or (kind != "-real" and built <= (major, minor))


def _load(package: Path) -> NativeStatus:
    left_out = _left_out(package)
    path, reason, fix = _candidate(package, left_out)
    build: dict[str, Any] = {}
    if reason is None:
        try:
            build = importlib.import_module("hiermt._C").build_info()
        except Exception as error:  # the import of an arbitrary binary may raise any exception
            reason = f"{path} cannot be loaded ({_first_line(error)})"
            built_for = f"another machine or torch than {torch.__version__}"
            fix = f"it is damaged or was built for {built_for}; rebuild: {remedy.rebuild_command(package)}"
        else:
            reason = _unfit(build)
            fix = f"rebuild: {remedy.rebuild_command(package)}" if reason else None
    return NativeStatus(reason is None, reason, fix, path, build, left_out)


def _candidate(package: Path, left_out: dict[str, str]) -> tuple[str | None, str | None, str | None]:
    """Path of the library, reason why it cannot be loaded, and fix."""
    expected = package / _LIBRARY
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return None, f"torch {torch.__version__} is older than {oldest}", f"upgrade torch to {oldest} or newer"
    # Python would load the extension module of an earlier hiermt in place of _C.py.
    stale = sorted(path.name for path in package.glob("_C.*so"))
    if stale:
        reason = f"{package} has the extension of an earlier hiermt, {', '.join(stale)}"
        return None, reason, f"rebuild, which removes it: {remedy.rebuild_command(package)}"
    if expected.is_file():
        if _is_cut_short(expected):
            reason = f"{expected} is damaged: it ends too early"
            return str(expected), reason, f"rebuild: {remedy.rebuild_command(package)}"
        return str(expected), None, None
    if "extension" in left_out:
        reason = f"the native library was left out of the build: {left_out['extension']}"
        return None, reason, f"install what was missing, then: {remedy.rebuild_command(package)}"
    reason = f"the native library is not built ({expected} does not exist)"
    return None, reason, f"build it: {remedy.rebuild_command(package)}"


def _is_cut_short(path: Path) -> bool:
    """Whether an ELF file ends before its section headers do; the loader would kill the process with SIGBUS."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return False  # not 64-bit little-endian ELF: the loader raises
    (offset,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    return bool(path.stat().st_size < offset + size * count)


def _unfit(build: dict[str, Any]) -> str | None:
    """Why a binary that was loaded cannot be used."""
    if build.get("version") != __version__:
        return f"the binary belongs to hiermt {build.get('version')}, this is hiermt {__version__}"
    missing = _without_kernel("CPU", OPERATORS)
    return f"the binary is older than the sources: it lacks {', '.join(missing)}" if missing else None


def _without_kernel(key: str, names: Iterable[str]) -> list[str]:
    """The operators without an implementation under a dispatch key."""
    return sorted(
        name
        for name in names
        if not hasattr(torch.ops.hiermt, name)
        or not torch._C._dispatch_has_kernel_for_dispatch_key(f"hiermt::{name}", key)
    )


def _left_out(package: Path) -> dict[str, str]:
    """The report that setup.py leaves beside the binary."""
    try:
        report = json.loads((package / "_build.json").read_text())
        return {part: why for part, why in report.items() if isinstance(why, str)}
    except (OSError, ValueError, AttributeError):
        return {}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _start() -> NativeStatus:
    status = _load(Path(__file__).resolve().parent.parent)
    if os.environ.get("HIERMT_BACKEND") == "reference":
        return status  # the native operators are not wanted
    if not status.available:
        # The command stands last and alone, so that it can be copied.
        _warn(f"hiermt runs on pure PyTorch, much slower: {status.reason}. To fix: {status.fix}")
    elif status.build["cpu_isa_error"]:
        _warn(status.build["cpu_isa_error"])
    return status


def _warn(text: str) -> None:
    warnings.warn(text, NativeUnavailableWarning, stacklevel=2)


_status = _start()
# Why each GPU that was tried cannot run the kernels.
_reasons: dict[int, str | None] = {}
_without_cuda_kernel = _without_kernel("CUDA", OPERATORS) if _status.available else []
