"""``python -m hiermt info``: what is built, for what, what runs on this machine, and why not more."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from typing import Any

import torch

from hiermt._version import __version__
from hiermt.native import extension


@dataclass(frozen=True)
class Info:
    """A snapshot of the installation; :func:`format` turns it into text.

    Attributes:
        version: of hiermt.
        python: version and platform.
        torch: version, the CUDA it was built for, threads.
        native: path of the library and its build information; empty without one.
        runs: implementation on each device.
        left_out: what is missing and why.
        environment: the set variables among those that hiermt reads.
    """

    version: str
    python: str
    torch: str
    native: dict[str, Any]
    runs: dict[str, str]
    left_out: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


_VARIABLES = ("HIERMT_BACKEND", "HIERMT_CPU_ISA")


def collect() -> Info:
    """Gathers the facts; of a GPU only its name and capability."""
    status = extension.native_status()
    native = {"path": status.path, **status.build} if status.available else {}
    left_out = [] if status.available else [f"native operators: {status.reason}; to fix: {status.fix}"]
    for kind in ("cpu", "cuda"):
        why = extension.why_not_native(kind)
        if status.available and why:
            left_out.append(f"native operators on {kind}: {why}")
    if status.available and (mismatch := extension.toolkit_mismatch()):
        left_out.append(mismatch)
    if status.available and status.build["cpu_isa_error"]:
        left_out.append(status.build["cpu_isa_error"])
    return Info(
        version=__version__,
        python=f"{platform.python_version()} on {platform.platform()}",
        torch=f"{torch.__version__}, {_torch_cuda()}, {torch.get_num_threads()} threads",
        native=native,
        runs={"cpu": _implementation("cpu"), **{f"cuda:{i}": _gpu(i) for i in range(torch.cuda.device_count())}},
        left_out=left_out,
        environment={name: os.environ[name] for name in _VARIABLES if name in os.environ},
    )


def format(info: Info) -> str:
    """The text of ``python -m hiermt info``."""
    lines = [f"hiermt {info.version}", f"  python   {info.python}", f"  torch    {info.torch}"]
    if info.native:
        native = info.native
        cuda = native["cuda"] and f"CUDA {native['cuda']} for {', '.join(native['cuda_architectures'])}"
        lines += [
            f"  native   {native['path']}",
            f"           built against torch {native['torch']}{_of(native)} (runs on {native['abi_target']} or newer, "
            f"any Python), {native['compiler']}",
            f"           CPU kernels for {', '.join(native['cpu_isas'])}; {cuda or 'no CUDA kernels'}",
        ]
    else:
        lines.append("  native   not available")
    lines += [f"  {device:8} {implementation}" for device, implementation in info.runs.items()]
    lines += [f"  missing  {what}" for what in info.left_out]
    lines += [f"  env      {name}={value}" for name, value in info.environment.items()]
    return "\n".join(lines)


def _of(native: dict[str, Any]) -> str:
    """The CUDA of the torch that a binary was built against, where its version does not name it."""
    cuda = native.get("torch_cuda")
    return f" for CUDA {cuda}" if cuda and "+cu" not in native["torch"] else ""


def _torch_cuda() -> str:
    if torch.version.cuda is None:
        return "CPU only"
    return f"CUDA {torch.version.cuda}" + ("" if torch.cuda.is_available() else ", no usable GPU")


def _implementation(device_type: str) -> str:
    chosen = os.environ.get("HIERMT_BACKEND", "auto") or "auto"
    if chosen == "reference":
        return "pure-PyTorch operators (HIERMT_BACKEND=reference)"
    if extension.why_not_native(device_type):
        return "pure-PyTorch operators"
    isa = extension.native_status().build["cpu_isa"]
    return f"native operators, {isa} kernels" if device_type == "cpu" else "native operators"


def _gpu(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    implementation, native = _implementation("cuda"), not extension.why_not_native("cuda")
    if native and (reason := extension.why_not_gpu(index)):
        implementation = f"pure-PyTorch operators: {reason};"
    return f"{implementation} on {torch.cuda.get_device_name(index)} (sm_{major}{minor})"
