"""Loads the compiled module ``hiermt._C``, or stores the reason of the failure.

The import of this module never raises and never builds. A binary that is missing, corrupt, built for another Python
or machine, or older than the package causes one warning with cause and fix; the pure-PyTorch twins then run.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import struct
import sysconfig
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from hiermt._version import __version__

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
    "multitask_loss",
    "multitask_loss_backward",
)
_REBUILD = "pip install --no-build-isolation . in hiermt's source tree (details: python -m hiermt info)"


class NativeUnavailableWarning(RuntimeWarning):
    """The compiled extension cannot be used; results are the same, but slower."""


@dataclass(frozen=True)
class NativeStatus:
    """Status of the compiled extension.

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


@cache
def why_not_gpu(index: int | None) -> str | None:
    """Why the GPU `index` (``None``: the current one) cannot run the kernels; ``None`` if it can.

    The first call for a device runs a tiny operator: a matching architecture does not imply that the driver supports
    the CUDA version of the kernels.
    """
    if not torch.cuda.is_available():
        return None
    capability = torch.cuda.get_device_capability(index)
    built = tuple(_status.build["cuda_architectures"])
    if any(_runs(architecture, *capability) for architecture in built):
        return _why_trial_fails(torch.device("cuda" if index is None else f"cuda:{index}"))
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
            return (
                f"a first operator failed on {device}: {_first_line(error)}; the usual cause is a driver older than "
                f"CUDA {_status.build.get('cuda')}, which the kernels were built with: update the driver, or rebuild "
                "with an older CUDA toolkit"
            )
    return None


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
            fix = (
                f"it is damaged or was built for another machine or torch than {torch.__version__}; rebuild: {_REBUILD}"
            )
        else:
            reason = _unfit(build)
            fix = f"rebuild: {_REBUILD}" if reason else None
    return NativeStatus(reason is None, reason, fix, path, build, left_out)


def _candidate(package: Path, left_out: dict[str, str]) -> tuple[str | None, str | None, str | None]:
    """Path of the binary, reason why it cannot be loaded, and fix."""
    expected = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return None, f"torch {torch.__version__} is older than {oldest}", f"upgrade torch to {oldest} or newer"
    if expected.is_file():
        if _is_cut_short(expected):
            return str(expected), f"{expected} is damaged: it ends too early", f"rebuild: {_REBUILD}"
        return str(expected), None, None
    others = sorted(path.name for path in package.glob("_C.*.so"))
    if others:
        reason = f"the extension was built for another Python or machine: {', '.join(others)}, not {expected.name}"
        return None, reason, f"rebuild with this Python: {_REBUILD}"
    if "extension" in left_out:
        return None, f"the extension was left out of the build: {left_out['extension']}", f"then {_REBUILD}"
    return None, f"the extension is not built ({expected} does not exist)", f"build it: {_REBUILD}"


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
        _warn(f"hiermt runs on pure PyTorch, much slower: {status.reason}. To fix: {status.fix}.")
    elif status.build["cpu_isa_error"]:
        _warn(status.build["cpu_isa_error"])
    return status


def _warn(text: str) -> None:
    warnings.warn(text, NativeUnavailableWarning, stacklevel=2)


_status = _start()
_without_cuda_kernel = _without_kernel("CUDA", OPERATORS) if _status.available else []
