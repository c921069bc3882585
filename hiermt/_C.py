"""The library of the native operators; the import loads it, which registers them with torch.

``libhiermt`` knows no Python, so that one file serves every version of it and C++ programs. The import raises
``OSError`` without it: :mod:`hiermt.native.extension` is the way that never raises.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TypedDict

# Before the library, which finds libtorch among the libraries of the process.
import torch  # noqa: F401

LIBRARY = Path(__file__).with_name("libhiermt.dylib" if sys.platform == "darwin" else "libhiermt.so")


class BuildInfo(TypedDict):
    """What the library was built from and for."""

    version: str
    torch: str
    torch_cuda: str | None
    abi_target: str
    compiler: str
    cpu_isas: tuple[str, ...]
    cpu_isa: str
    cpu_isa_error: str
    cuda: str | None
    cuda_architectures: tuple[str, ...]


_library = ctypes.CDLL(str(LIBRARY))
_library.hiermt_build_info.argtypes = [ctypes.c_char_p]
_library.hiermt_build_info.restype = ctypes.c_char_p
_library.hiermt_release_scratch.argtypes = []
_library.hiermt_release_scratch.restype = ctypes.c_int64


def build_info() -> BuildInfo:
    """What this library was built from and for, and the instruction set that runs here."""
    return {
        "version": _fact("version"),
        "torch": _fact("torch"),
        "torch_cuda": _fact("torch_cuda") or None,
        "abi_target": _fact("abi_target"),
        "compiler": _fact("compiler"),
        "cpu_isas": _list("cpu_isas"),
        "cpu_isa": _fact("cpu_isa"),
        "cpu_isa_error": _fact("cpu_isa_error"),
        "cuda": _fact("cuda") or None,
        "cuda_architectures": _list("cuda_architectures"),
    }


def release_scratch() -> int:
    """Returns the scratch memory of the CPU kernels to the system; the result is its size in bytes."""
    return int(_library.hiermt_release_scratch())


def _fact(key: str) -> str:
    value: bytes | None = _library.hiermt_build_info(key.encode())
    return (value or b"").decode(errors="replace")


def _list(key: str) -> tuple[str, ...]:
    return tuple(filter(None, _fact(key).split(",")))
