"""Builds ``hiermt._C`` by driving CMake; everything else about the package stands in pyproject.toml.

Environment:
    HIERMT_BUILD          ``auto`` (default) builds what the machine can build, ``none`` leaves the extension out
    HIERMT_BUILD_DIR      where objects are kept between builds (default: ``build/<python>-<torch>``)
    HIERMT_CMAKE_ARGS     more arguments for the configuration, such as ``-DHIERMT_SANITIZE=address,undefined``
    FORCE_CUDA            ``1`` builds the CUDA kernels also against a CPU-only torch, ``0`` never builds them
    TORCH_CUDA_ARCH_LIST  such as ``8.0;9.0+PTX`` (default: 8.0, 9.0, 10.0+PTX)
    MAX_JOBS              parallel compilations (default: CPUs)
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
DEFAULT_ARCHITECTURES = ("80-real", "90-real", "100")
REPORT = "hiermt/_build.json"


class LeftOut(Exception):
    """The extension cannot be built here; the package works without it."""


class BuildError(SystemExit):
    """What was asked for cannot be done: the build stops."""


@dataclass(frozen=True)
class Torch:
    """The torch to build against, read from its files: importing it takes seconds and may need a driver."""

    path: Path
    version: str
    cuda: str | None


def find_torch() -> Torch:
    spec = importlib.util.find_spec("torch")
    candidates = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    # Under build isolation torch is hidden from the import system but still lies in the environment.
    candidates += [Path(sysconfig.get_path(key)) / "torch" for key in ("purelib", "platlib")]
    for path in candidates:
        if not (path / "version.py").is_file():
            continue
        text = (path / "version.py").read_text()
        version = re.search(r"^__version__ = '([^']+)'", text, re.M)
        cuda = re.search(r"^cuda[^=]*= '([^']+)'", text, re.M)
        if version is None:
            continue
        found = tuple(int(part) for part in re.findall(r"\d+", version[1])[:2])
        if found < OLDEST_TORCH:
            raise LeftOut(f"torch {version[1]} is older than {'.'.join(map(str, OLDEST_TORCH))}: upgrade torch")
        return Torch(path, version[1], cuda[1] if cuda else None)
    raise LeftOut(
        "torch is not installed in this environment: install torch first, then hiermt with --no-build-isolation"
    )


def find_pybind11(torch: Torch) -> Path:
    spec = importlib.util.find_spec("pybind11")
    for base in list(spec.submodule_search_locations or []) if spec else []:
        if (Path(base) / "include/pybind11/pybind11.h").is_file():
            return Path(base) / "include"
    if (torch.path / "include/pybind11/pybind11.h").is_file():
        return torch.path / "include"
    raise LeftOut("pybind11 is not installed: pip install pybind11")


def find_tool(name: str) -> str | None:
    """A program beside this Python, on the PATH, or inside the wheel of the same name."""
    beside = Path(sys.executable).parent / name
    if beside.is_file() and os.access(beside, os.X_OK):
        return str(beside)
    on_path = shutil.which(name)
    if on_path:
        return on_path
    spec = importlib.util.find_spec(name)
    for base in list(spec.submodule_search_locations or []) if spec else []:
        for candidate in (Path(base) / "data/bin" / name, Path(base).parent / "bin" / name):
            if candidate.is_file():
                return str(candidate)
    return None


def find_nvcc() -> str | None:
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin/nvcc").is_file():
            return str(Path(home) / "bin/nvcc")
    on_path = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if on_path:
        return on_path
    usual = Path("/usr/local/cuda/bin/nvcc")
    return str(usual) if usual.is_file() else None


def cuda_choice(torch: Torch) -> tuple[str | None, str]:
    """The nvcc to use, or None, and the reason in words."""
    force = os.environ.get("FORCE_CUDA", "")
    nvcc = find_nvcc()
    if force == "0":
        return None, "FORCE_CUDA=0"
    if nvcc is None:
        if force == "1":
            raise BuildError(
                "hiermt: FORCE_CUDA=1, but nvcc was not found (looked at CUDA_HOME, PATH, /usr/local/cuda)"
            )
        return None, f"nvcc was not found (torch {torch.version}{'' if torch.cuda else ' has no CUDA either'})"
    if force == "1":
        return nvcc, "FORCE_CUDA=1"
    if torch.cuda is None:
        return None, f"torch {torch.version} is CPU-only; FORCE_CUDA=1 builds the kernels nevertheless"
    return nvcc, f"torch {torch.version} is built for CUDA {torch.cuda}"


def architectures(nvcc: str) -> str:
    """CMake's spelling of the architectures asked for, or of the default ones that this nvcc knows."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").replace(",", ";")
    if asked.strip(";"):
        chosen = []
        for entry in filter(None, asked.split(";")):
            match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
            if match is None:
                raise BuildError(f"hiermt: TORCH_CUDA_ARCH_LIST: expected 9.0 or 9.0+PTX and the like, got {entry!r}")
            major, minor, feature, ptx = match.groups()
            chosen.append(f"{major}{minor}{feature}" + ("" if ptx else "-real"))
        return ";".join(chosen)
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    known = [arch for arch in DEFAULT_ARCHITECTURES if f"compute_{arch.removesuffix('-real')}\n" in listed + "\n"]
    if not known:
        raise BuildError(f"hiermt: {nvcc} knows none of the default architectures; set TORCH_CUDA_ARCH_LIST")
    return ";".join([*known[:-1], known[-1].removesuffix("-real")])


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Two builds in one directory would tread on each other."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(*lines: str) -> None:
    print("\n".join(f"hiermt: {line}" for line in lines), file=sys.stderr, flush=True)


class CMakeBuild(build_ext):
    """Configures and builds with CMake, or says loudly what is left out; leaves a report for ``hiermt info``."""

    def run(self) -> None:
        self.built: Path | None = None
        report: dict[str, str | None] = {"extension": None, "cuda": None}
        try:
            self.built = self.build(report)
        except LeftOut as reason:
            report["extension"] = str(reason)
            banner = "=" * 78
            say(
                banner,
                "THE NATIVE EXTENSION IS LEFT OUT; the pure-PyTorch operators, much slower, will run.",
                f"Why: {reason}",
                banner,
            )
        self.place(report)

    def build(self, report: dict[str, str | None]) -> Path:
        mode = os.environ.get("HIERMT_BUILD", "auto") or "auto"
        if mode not in ("auto", "none"):
            raise BuildError(f"hiermt: HIERMT_BUILD: expected auto or none, got {mode!r}")
        if mode == "none":
            raise LeftOut("HIERMT_BUILD=none was set when hiermt was installed")
        if sys.platform == "win32":
            raise LeftOut("Windows is not supported")
        torch = find_torch()
        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None or shutil.which(shlex.split(compiler)[0]) is None:
            raise LeftOut(f"no C++ compiler was found ({compiler or 'c++, g++, clang++'}): install g++ or clang++")
        cmake = find_tool("cmake")
        if cmake is None:
            raise LeftOut("cmake was not found: pip install cmake ninja")
        ninja = find_tool("ninja")
        if ninja is None and shutil.which("make") is None:
            raise LeftOut("neither ninja nor make was found: pip install ninja")
        nvcc, why = cuda_choice(torch)
        report["cuda"] = None if nvcc else why
        arguments = self.arguments(torch, nvcc) + (["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else [])
        say(
            f"torch {torch.version}, compiler {compiler}",
            f"CUDA kernels {'ON' if nvcc else 'LEFT OUT'}: {why}",
        )
        # Not by CUDA: a build with and one without share the objects of the CPU kernels.
        tag = f"{sys.implementation.cache_tag}-torch{torch.version}"
        directory = Path(os.environ.get("HIERMT_BUILD_DIR") or ROOT / "build" / tag)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        with locked(directory):
            self.call(cmake, "-S", str(ROOT), "-B", str(directory), *arguments)
            self.call(cmake, "--build", str(directory), "--target", "_C", "--parallel", jobs)
        return directory / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"

    def arguments(self, torch: Torch, nvcc: str | None) -> list[str]:
        values = {
            "HIERMT_VERSION": self.distribution.get_version(),
            "HIERMT_TORCH_VERSION": torch.version,
            "HIERMT_TORCH_INCLUDE": str(torch.path / "include"),
            "HIERMT_TORCH_LIB": str(torch.path / "lib"),
            "HIERMT_PYTHON_INCLUDE": sysconfig.get_path("include"),
            "HIERMT_PYBIND11_INCLUDE": str(find_pybind11(torch)),
            "HIERMT_EXT_SUFFIX": str(sysconfig.get_config_var("EXT_SUFFIX")),
            "HIERMT_CUDA": "ON" if nvcc else "OFF",
        }
        if nvcc:
            values |= {"CMAKE_CUDA_COMPILER": nvcc, "CMAKE_CUDA_ARCHITECTURES": architectures(nvcc)}
        return [f"-D{key}={value}" for key, value in values.items()] + shlex.split(
            os.environ.get("HIERMT_CMAKE_ARGS", "")
        )

    def call(self, *command: str) -> None:
        if subprocess.run(command, check=False).returncode:
            raise BuildError(
                f"hiermt: {shlex.join(command)} failed, see above. HIERMT_BUILD=none installs without the extension."
            )

    def place(self, report: dict[str, str | None]) -> None:
        """Puts the module and the report where the package is: the build tree, and the source tree if in place."""
        roots = [Path(self.build_lib)] + ([ROOT] if self.inplace else [])
        for root in roots:
            (root / "hiermt").mkdir(parents=True, exist_ok=True)
            (root / REPORT).write_text(json.dumps(report, indent=1) + "\n")
            target = root / self.get_ext_filename("hiermt._C")
            # An old module beside a new report would run in place of what was just left out.
            target.unlink(missing_ok=True)
            if self.built is not None:
                shutil.copy2(self.built, target)

    def get_outputs(self) -> list[str]:
        return sorted(self.get_output_mapping() or self._built_files(Path(self.build_lib)))

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return dict(zip(self._built_files(Path(self.build_lib)), self._built_files(ROOT), strict=True))

    def _built_files(self, root: Path) -> list[str]:
        names = [REPORT] + ([self.get_ext_filename("hiermt._C")] if getattr(self, "built", None) else [])
        return [str(root / name) for name in names]


setup(ext_modules=[Extension("hiermt._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
