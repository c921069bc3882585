"""Finds what a build needs on this machine: torch, compilers, cmake and ninja."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from options import BuildError, Options

OLDEST_TORCH = (2, 11)
OLDEST_TOOLS = {"cmake": (3, 20), "ninja": (1, 10)}
# Machine code for each generation. PTX of 10.0 serves 11.0, which no PTX of 12.0 does.
DEFAULT_ARCHITECTURES = ("80-real", "90-real", "100", "120")


class LeftOut(Exception):
    """The library cannot be built here; the package works without it."""


class TorchMissing(LeftOut):
    """There is no torch to build against, or an old one: a requirement can bring it in."""


@dataclass(frozen=True)
class Torch:
    """The torch to build against, read from its files: importing it takes seconds and may need a driver."""

    path: Path
    version: str
    cuda: str | None


def package_folders(name: str) -> Iterator[Path]:
    """Where a package is installed: as this Python imports it, then in the environment.

    Build isolation hides the environment from the import system, but its files are still there.
    """
    spec = importlib.util.find_spec(name)
    yield from (Path(p) for p in (spec.submodule_search_locations or [])) if spec else ()
    for key in ("purelib", "platlib"):
        yield Path(sysconfig.get_path(key)) / name


def find_torch() -> Torch:
    """The first torch that is new enough.

    Raises:
        TorchMissing: there is none.
    """
    oldest = ".".join(map(str, OLDEST_TORCH))
    old = None
    for path in package_folders("torch"):
        if not (path / "version.py").is_file():
            continue
        text = (path / "version.py").read_text()
        version = re.search(r"^__version__ = '([^']+)'", text, re.M)
        cuda = re.search(r"^cuda[^=]*= '([^']+)'", text, re.M)
        if version is None:
            continue
        if tuple(int(part) for part in re.findall(r"\d+", version[1])[:2]) >= OLDEST_TORCH:
            return Torch(path, version[1], cuda[1] if cuda else None)
        old = version[1]
    if old:
        raise TorchMissing(f"torch {old} is older than {oldest}: upgrade torch, then install hiermt again")
    raise TorchMissing("torch was not installed when hiermt was built: install torch, then hiermt again")


def find_compiler(options: Options) -> str:
    """The C++ compiler, with arguments if CXX has some."""
    if sys.platform == "win32":
        raise LeftOut("Windows is not supported")
    compiler = options.compiler or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise LeftOut("no C++ compiler was found (c++, g++, clang++): install g++ or clang++, then hiermt again")
    return compiler


def find_tool(name: str, *folders: Path) -> str | None:
    """A program of :data:`OLDEST_TOOLS` that starts and is new enough, or ``None``.

    A script of the environment that is on the PATH does not start under build isolation, so the programs inside the
    packages come first.
    """
    candidates = [folder / where / name for folder in folders for where in ("cmake/data/bin", "bin")]
    for folder in package_folders(name):
        candidates += [folder / "data/bin" / name, folder.parent / "bin" / name]
    candidates.append(Path(sys.executable).parent / name)
    candidates += [Path(entry) / name for entry in os.get_exec_path() if entry]
    for candidate in dict.fromkeys(candidates):
        if candidate.is_file() and os.access(candidate, os.X_OK) and _version(candidate) >= OLDEST_TOOLS[name]:
            return str(candidate)
    return None


def _version(program: Path) -> tuple[int, ...]:
    """Version that a program prints; empty if it does not start."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ()
    found = re.search(r"(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else ()


def bring_tools(folder: Path) -> tuple[str, str]:
    """Cmake and ninja, from this machine or else from their packages, which are installed into `folder`."""
    missing = [name for name in OLDEST_TOOLS if find_tool(name, folder) is None]
    if missing:
        wanted = [f"{name}>={'.'.join(map(str, OLDEST_TOOLS[name]))}" for name in missing]
        for installer in ([sys.executable, "-m", "pip"], ["uv", "pip"]):
            command = [*installer, "install", "--quiet", "--upgrade", "--target", str(folder), *wanted]
            try:
                done = subprocess.run(command, capture_output=True, check=False)
            except OSError:
                continue
            if done.returncode == 0:
                break
    found = {name: find_tool(name, folder) for name in OLDEST_TOOLS}
    lacking = [name for name, program in found.items() if program is None]
    if lacking:
        names = " and ".join(lacking)
        raise LeftOut(f"{names} not found, nor could the package be installed: pip install {' '.join(lacking)}")
    return str(found["cmake"]), str(found["ninja"])


def find_nvcc(options: Options) -> str | None:
    """nvcc, or ``None``."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin/nvcc").is_file():
            return str(Path(home) / "bin/nvcc")
    on_path = options.cuda_compiler or shutil.which("nvcc")
    if on_path:
        return on_path
    usual = Path("/usr/local/cuda/bin/nvcc")
    return str(usual) if usual.is_file() else None


def cuda_choice(options: Options, torch: Torch, built_before: bool) -> tuple[str | None, str]:
    """The nvcc to use, or ``None``, and the reason.

    Args:
        built_before: whether the objects in the folder of the build include CUDA kernels.
    """
    if options.cuda is False:
        return None, "FORCE_CUDA=0"
    nvcc = find_nvcc(options)
    if nvcc is None:
        if options.cuda:
            raise BuildError("FORCE_CUDA=1: expected nvcc at CUDA_HOME, on the PATH or in /usr/local/cuda, found none")
        return None, f"nvcc was not found (torch {torch.version}{'' if torch.cuda else ' has no CUDA either'})"
    if options.cuda:
        return nvcc, "FORCE_CUDA=1"
    if torch.cuda:
        return nvcc, f"torch {torch.version} is built for CUDA {torch.cuda}"
    if built_before:
        return nvcc, "an earlier build in this folder had FORCE_CUDA=1; FORCE_CUDA=0 leaves them out"
    return None, f"torch {torch.version} is CPU-only; FORCE_CUDA=1 builds the kernels nevertheless"


def toolkit_notes(torch: Torch, nvcc: str) -> list[str]:
    """A note if the toolkit is of a later CUDA than torch: such kernels need a later driver than torch does."""
    said = subprocess.run([*shlex.split(nvcc), "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None or torch.cuda is None or int(release[1]) <= int(torch.cuda.split(".")[0]):
        return []
    return [
        f"NOTE: {nvcc} is of CUDA {release[1]}.{release[2]}, torch {torch.version} of CUDA {torch.cuda}. The kernels "
        f"need a driver for CUDA {release[1]}; on an older one the pure-PyTorch operators run. To fix, set CUDA_HOME "
        f"to a toolkit of CUDA {torch.cuda} and build again, or install torch for CUDA {release[1]}."
    ]


def architectures(options: Options, nvcc: str) -> str:
    """CMake's spelling of the chosen architectures, or of the default ones that this nvcc knows."""
    if options.architectures:
        return ";".join(options.architectures)
    listed = subprocess.run([*shlex.split(nvcc), "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    known = [arch for arch in DEFAULT_ARCHITECTURES if f"compute_{arch.removesuffix('-real')}\n" in listed + "\n"]
    if not known:
        raise BuildError(f"{nvcc} knows none of the default architectures: set TORCH_CUDA_ARCH_LIST")
    return ";".join([*known[:-1], known[-1].removesuffix("-real")])
