"""Builds ``libhiermt`` by driving CMake; everything else about the package stands in pyproject.toml.

cmake/options.py lists the environment variables that choose what is built, cmake/toolchain.py finds the tools.
"""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import setuptools

# The environment's own, without build isolation. Older ones read neither the licence nor have bdist_wheel.
if int(setuptools.__version__.partition(".")[0]) < 77:
    raise SystemExit(
        f"hiermt: expected setuptools 77.0.3 or newer, got {setuptools.__version__}: pip install 'setuptools>=77.0.3', "
        "or leave --no-build-isolation out"
    )

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "cmake"))
import options  # noqa: E402
import toolchain  # noqa: E402

LIBRARY = "libhiermt.dylib" if sys.platform == "darwin" else "libhiermt.so"
REPORT = "_build.json"
# A build tag of its own: the file name of a wheel without the library never equals that of one with it.
WITHOUT_LIBRARY = "0nolibrary"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Two builds in one directory would overwrite each other."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(*lines: str) -> None:
    print("\n".join(f"hiermt: {line}" for line in lines), file=sys.stderr, flush=True)


class CMakeBuild(build_ext):
    """Configures and builds with CMake, or says loudly what is left out; leaves a report for ``hiermt info``."""

    built: Path | None = None
    left_out = False

    def run(self) -> None:
        self.options = options.read()
        report: dict[str, str | None] = {"extension": None, "cuda": None}
        try:
            self.built = self.build(report)
        except toolchain.LeftOut as reason:
            if self.options.required:
                raise options.BuildError(f"HIERMT_REQUIRE_NATIVE=1, but {reason}") from None
            self.left_out = True
            report["extension"] = str(reason)
            banner = "=" * 78
            say(
                banner,
                "THE NATIVE LIBRARY IS LEFT OUT; the pure-PyTorch operators, much slower, will run.",
                f"Why: {reason}",
                "HIERMT_REQUIRE_NATIVE=1 lets the build fail instead.",
                banner,
            )
        self.place(report)

    def build(self, report: dict[str, str | None]) -> Path:
        if self.options.leave_out:
            raise toolchain.LeftOut("HIERMT_BUILD=none was set when hiermt was installed")
        compiler = toolchain.find_compiler(self.options)
        torch = toolchain.find_torch()
        # Not by CUDA: a build with and one without share the objects of the CPU kernels.
        directory = self.options.directory or ROOT / "build" / f"torch{torch.version}"
        nvcc, why = toolchain.cuda_choice(self.options, torch, has_cuda(directory))
        report["cuda"] = None if nvcc else why
        say(
            f"torch {torch.version}, compiler {compiler}",
            f"CUDA kernels {'ON' if nvcc else 'LEFT OUT'}: {why}",
            *(toolchain.toolkit_notes(torch, nvcc) if nvcc else []),
        )
        with locked(directory):
            cmake, ninja = toolchain.bring_tools(ROOT / "build" / "tools")
            generator = ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
            forget_another_source(directory)
            self.call(cmake, "-S", str(ROOT), "-B", str(directory), *generator, *self.arguments(torch, nvcc))
            self.call(cmake, "--build", str(directory), "--target", "hiermt", "--parallel", str(self.options.jobs))
        return directory / LIBRARY

    def arguments(self, torch: toolchain.Torch, nvcc: str | None) -> list[str]:
        values = {
            "HIERMT_VERSION": self.distribution.get_version(),
            "HIERMT_TORCH_VERSION": torch.version,
            "HIERMT_TORCH_CUDA": torch.cuda or "",
            "HIERMT_TORCH_INCLUDE": str(torch.path / "include"),
            "HIERMT_TORCH_LIB": str(torch.path / "lib"),
            "HIERMT_CUDA": "ON" if nvcc else "OFF",
        }
        if nvcc:
            chosen = toolchain.architectures(self.options, nvcc)
            values |= {"CMAKE_CUDA_COMPILER": nvcc, "CMAKE_CUDA_ARCHITECTURES": chosen}
        return [*(f"-D{key}={value}" for key, value in values.items()), *self.options.cmake]

    def call(self, *command: str) -> None:
        if subprocess.run(command, check=False).returncode:
            raise options.BuildError(
                f"{shlex.join(command)} failed, see above. HIERMT_BUILD=none installs without the library."
            )

    def place(self, report: dict[str, str | None]) -> None:
        """Puts the library and the report where the package is: the build tree, and the source tree if in place."""
        roots = [Path(self.build_lib)] + ([ROOT] if self.inplace else [])
        for package in (root / "hiermt" for root in roots):
            package.mkdir(parents=True, exist_ok=True)
            (package / REPORT).write_text(json.dumps(report, indent=1) + "\n")
            # An old library beside a new report would run in place of what was just left out. The same holds for the
            # extension modules _C of earlier builds, which Python prefers to _C.py.
            for old in (package / LIBRARY, *package.glob("_C.*so")):
                old.unlink(missing_ok=True)
            if self.built is not None:
                shutil.copy2(self.built, package / LIBRARY)

    def get_outputs(self) -> list[str]:
        return sorted(self.get_output_mapping() or self._built_files(Path(self.build_lib)))

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return dict(zip(self._built_files(Path(self.build_lib)), self._built_files(ROOT), strict=True))

    def _built_files(self, root: Path) -> list[str]:
        return [str(root / "hiermt" / name) for name in [REPORT] + ([LIBRARY] if self.built else [])]


class Wheel(bdist_wheel):
    """Names a wheel by what is in it: the library knows no Python, so the tag names only the platform."""

    def get_tag(self) -> tuple[str, str, str]:
        # Called first after the build, before the file name is composed.
        if self.get_finalized_command("build_ext").left_out:
            self.root_is_pure = True
            self.build_number = WITHOUT_LIBRARY
            return "py3", "none", "any"
        return "py3", "none", super().get_tag()[2]


def has_cuda(directory: Path) -> bool:
    """Whether the objects in a folder of a build include CUDA kernels."""
    try:
        return "HIERMT_CUDA:BOOL=ON" in (directory / "CMakeCache.txt").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def forget_another_source(directory: Path) -> None:
    """Removes the configuration of a source tree elsewhere, which CMake refuses: a tree was moved or copied."""
    cache = directory / "CMakeCache.txt"
    if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text(errors="replace"):
        shutil.rmtree(directory / "CMakeFiles", ignore_errors=True)
        cache.unlink()


setup(
    ext_modules=[Extension("hiermt.libhiermt", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
