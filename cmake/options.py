"""Options of the build, which are environment variables: read once, and refused in one sentence if they make no sense.

HIERMT_BUILD            ``auto`` (default) builds what the machine can build, ``none`` leaves the library out
HIERMT_REQUIRE_NATIVE   ``1`` lets the build fail where the library cannot be built
HIERMT_BUILD_DIR        folder for objects, kept between builds (default: ``build/torch<version>``)
HIERMT_CMAKE_ARGS       more arguments for the configuration, such as ``-DHIERMT_SANITIZE=address,undefined``
FORCE_CUDA              ``1`` builds the CUDA kernels also against a CPU-only torch, ``0`` never builds them
TORCH_CUDA_ARCH_LIST    such as ``8.0;9.0+PTX`` (default: 8.0, 9.0, 10.0+PTX, 12.0+PTX)
MAX_JOBS                parallel compilations (default: CPUs)
CXX, CUDACXX            compilers
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class BuildError(SystemExit):
    """The request cannot be met: the build stops."""

    def __init__(self, text: str) -> None:
        super().__init__(f"hiermt: {text}")


@dataclass(frozen=True)
class Options:
    """The checked options.

    Attributes:
        leave_out: no library is wanted.
        required: a build without the library fails.
        directory: folder for objects, ``None`` for the default.
        cmake: more arguments for the configuration.
        cuda: CUDA kernels on, off, or as the machine is (``None``).
        architectures: of the GPUs, in CMake's spelling; empty for the default.
        jobs: parallel compilations.
        compiler: of C++, with arguments; ``None`` to look for one.
        cuda_compiler: path of nvcc, ``None`` to look for one.
    """

    leave_out: bool
    required: bool
    directory: Path | None
    cmake: tuple[str, ...]
    cuda: bool | None
    architectures: tuple[str, ...]
    jobs: int
    compiler: str | None
    cuda_compiler: str | None


def read(environment: Mapping[str, str] = os.environ) -> Options:
    """Reads all options.

    Raises:
        BuildError: one has a value that it cannot have, or two contradict each other.
    """
    leave_out = _choice(environment, "HIERMT_BUILD", {"auto": False, "none": True, "": False})
    required = _choice(environment, "HIERMT_REQUIRE_NATIVE", {"0": False, "1": True, "": False})
    if leave_out and required:
        raise BuildError("HIERMT_REQUIRE_NATIVE=1 contradicts HIERMT_BUILD=none: unset one of them")
    return Options(
        leave_out=bool(leave_out),
        required=bool(required),
        directory=_directory(environment),
        cmake=_cmake_arguments(environment),
        cuda=_choice(environment, "FORCE_CUDA", {"0": False, "1": True, "": None}),
        architectures=_architectures(environment),
        jobs=_jobs(environment),
        compiler=_compiler(environment, "CXX", "a C++ compiler such as g++ or clang++"),
        cuda_compiler=_compiler(environment, "CUDACXX", "the path of nvcc"),
    )


def _choice(environment: Mapping[str, str], name: str, values: Mapping[str, bool | None]) -> bool | None:
    text = environment.get(name, "")
    if text not in values:
        raise BuildError(f"{name}: expected {' or '.join(filter(None, values))}, got {text!r}")
    return values[text]


def _directory(environment: Mapping[str, str]) -> Path | None:
    text = environment.get("HIERMT_BUILD_DIR", "")
    if not text:
        return None
    path = Path(text).expanduser().absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BuildError(f"HIERMT_BUILD_DIR: expected a folder that can be written, got {text!r}")
    return path


def _cmake_arguments(environment: Mapping[str, str]) -> tuple[str, ...]:
    text = environment.get("HIERMT_CMAKE_ARGS", "")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BuildError(f"HIERMT_CMAKE_ARGS: expected words as in a shell, got {text!r} ({error})") from None
    for word in words:
        if not re.match(r"-[DUWG]\w|--?[a-z]", word):
            raise BuildError(f"HIERMT_CMAKE_ARGS: expected arguments such as -DNAME=VALUE, got {word!r}")
    return tuple(words)


def _architectures(environment: Mapping[str, str]) -> tuple[str, ...]:
    text = environment.get("TORCH_CUDA_ARCH_LIST", "")
    chosen = []
    for entry in re.split(r"[;, ]+", text.strip(";, ")) if text.strip(";, ") else ():
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if match is None:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: expected 9.0 or 9.0+PTX and the like, got {entry!r}")
        major, minor, feature, ptx = match.groups()
        chosen.append(f"{major}{minor}{feature}" + ("" if ptx else "-real"))
    return tuple(chosen)


def _jobs(environment: Mapping[str, str]) -> int:
    text = environment.get("MAX_JOBS", "")
    if not text:
        return os.cpu_count() or 1
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text):
        raise BuildError(f"MAX_JOBS: expected a positive whole number of compilations, got {text!r}")
    return int(text)


def _compiler(environment: Mapping[str, str], name: str, expected: str) -> str | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        program = shlex.split(text)[0]
    except ValueError:
        program = text
    if shutil.which(program) is None:
        raise BuildError(f"{name}: expected {expected}, got {text!r}, which is not a program here")
    return text
