"""Installs hiermt in every way that a user may, each in an environment of its own: ``make matrix``.

    python tests/package/matrix.py [--only NAME,...] [--folder DIR] [--keep]

Run by hand, since each way builds the library. It needs a package index (for uv, build and torch) and a C++ compiler.
TORCH, as in the Makefile, is the torch to install. Each line of the result is a way and what came of it; one that this
machine lacks something for is skipped, not passed. The exit code is 1 if one failed. With ccache on the PATH the later
builds take the objects of the first.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = os.environ.get("TORCH", "torch==2.13.0").split()
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NATIVE = re.compile(r"hiermt-[\d.]+-py3-none-(?!any)\w+\.whl")
WITHOUT = re.compile(r"hiermt-[\d.]+-0nolibrary-py3-none-any\.whl")
PROBE = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import hiermt, torch
    from hiermt.native.extension import native_status
print(json.dumps([native_status().available, [str(w.message) for w in caught if "hiermt" in str(w.message)]]))
"""


class Skipped(Exception):
    """This machine lacks what a way needs."""


class Place:
    """A folder of throw-away environments, with a copy of the sources and the installers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        # The ways differ in how a build comes about. Where the index has a torch with CUDA, the kernels for all
        # architectures take ten minutes.
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "9.0")
        if ccache := shutil.which("ccache"):
            # CMake reads it. By its path, since the folders of programs below have compilers alone.
            os.environ.setdefault("CMAKE_CXX_COMPILER_LAUNCHER", ccache)
            os.environ.setdefault("CCACHE_BASEDIR", tempfile.gettempdir())
        # Isolated builds would take the newest torch, another one than the environment has.
        (folder / "constraint.txt").write_text(f"{TORCH[0]}\n")
        for variable in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "UV_BUILD_CONSTRAINT"):
            os.environ.setdefault(variable, str(folder / "constraint.txt"))
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.source / name)
        self.tools = self.environment("tools", shared=False)
        run(self.tools / "bin/pip", "install", "-q", "uv", "build", "setuptools>=77.0.3", "mypy")
        self.plain = self.programs("plain", without=("cmake", "ninja", "make", "uv"))
        self.bare = self.programs("bare", without=None)

    def environment(self, name: str, python: str = sys.executable, shared: bool = True) -> Path:
        """A virtual environment; `shared` shows it the packages of this one, without those that a build needs."""
        home = self.folder / name
        run(python, "-m", "venv", home)
        if shared:
            packages = self.folder / f"{name}-packages"
            packages.mkdir()
            for path in Path(site.getsitepackages()[0]).iterdir():
                if not re.match(r"(cmake|ninja|hiermt|__editable__|pip|uv)", path.name) and path.suffix != ".pth":
                    (packages / path.name).symlink_to(path)
            target = next((home / "lib").glob("python3*")) / "site-packages"
            (target / "shared.pth").write_text(f"{packages}\n")
        return home

    def programs(self, name: str, without: tuple[str, ...] | None) -> str:
        """A PATH with the programs of this one but some; with none at all for ``None``."""
        folder = self.folder / f"programs-{name}"
        folder.mkdir()
        for entry in os.get_exec_path() if without is not None else ():
            for program in Path(entry).glob("*"):
                link = folder / program.name
                # A compiler that is a link to ccache looks for the real one on the PATH, which is this folder.
                if program.name != "ccache" and program.resolve().name == "ccache":
                    continue
                if program.name not in (without or ()) and not link.is_symlink():
                    link.symlink_to(program.absolute())
        return str(folder)

    def sdist(self) -> Path:
        """The source distribution."""
        if not list((self.folder / "sdist").glob("*.tar.gz")):
            command = [self.tools / "bin/python", "-m", "build", "--no-isolation", "--sdist"]
            run(*command, "-o", self.folder / "sdist", self.source, PATH=self.path(self.tools))
        return next((self.folder / "sdist").glob("*.tar.gz"))

    def wheel(self) -> Path:
        """A wheel with the library, as the standard front end builds it: isolated, with the required torch."""
        if not list((self.folder / "dist").glob("*.whl")):
            command = [self.tools / "bin/python", "-m", "build", "--wheel", "-o", self.folder / "dist", self.source]
            run(*command, PATH=self.plain)
        return next((self.folder / "dist").glob("*.whl"))

    @staticmethod
    def path(home: Path) -> str:
        return f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"


def run(*command: object, expect: bool = True, cwd: Path | None = None, **environment: str) -> str:
    """Runs a command; returns what it printed.

    Raises:
        AssertionError: it failed, or succeeded where `expect` is false.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "HIERMT_BACKEND")}
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd or tempfile.gettempdir(),
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is expect, f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def probe(home: Path) -> tuple[bool, list[str]]:
    """Whether the native operators run in an environment, and the warnings of its first import."""
    available, warned = json.loads(run(home / "bin/python", "-W", "always", "-c", PROBE).splitlines()[-1])
    return available, warned


def check_native(home: Path) -> None:
    available, warned = probe(home)
    assert available, warned
    assert not warned, warned


def check_repair(home: Path, **environment: str) -> None:
    """The first import warns, and the command that it names installs the library."""
    available, warned = probe(home)
    assert not available
    assert len(warned) == 1, warned
    command = warned[0][warned[0].index("HIERMT_REQUIRE_NATIVE=1 ") :]
    run("sh", "-c", command, **environment)
    check_native(home)


def pip_tree(place: Place) -> None:
    """pip install . beside a torch, with a compiler and without cmake and ninja."""
    home = place.environment("pip-tree", shared=False)
    run(home / "bin/pip", "install", "-q", *TORCH, "numpy")
    run(home / "bin/pip", "install", place.source, "--no-deps", PATH=place.plain)
    check_native(home)


def pip_no_isolation(place: Place) -> None:
    """pip install --no-build-isolation . with a compiler and without cmake and ninja."""
    home = place.environment("pip-no-isolation")
    run(home / "bin/pip", "install", "-q", "setuptools==69.*", "wheel")
    told = run(home / "bin/pip", "install", "--no-build-isolation", "--no-deps", place.source, expect=False)
    assert "hiermt: expected setuptools 77.0.3 or newer, got 69" in told, told
    run(home / "bin/pip", "install", "-q", "setuptools>=77.0.3")
    run(home / "bin/pip", "install", "--no-build-isolation", "--no-deps", place.source, PATH=place.plain)
    check_native(home)


def pip_sdist(place: Place) -> None:
    """A source distribution into an empty environment."""
    home = place.environment("pip-sdist", shared=False)
    run(home / "bin/pip", "install", place.sdist(), PATH=place.plain)
    check_native(home)


def uv_tree(place: Place) -> None:
    """uv pip install . beside a torch, which uv hides from the build."""
    home = place.environment("uv-tree")
    uv = place.tools / "bin/uv"
    run(uv, "pip", "install", "--python", home / "bin/python", "--no-deps", ".", cwd=place.source, PATH=place.plain)
    check_native(home)


def build_front_end(place: Place) -> None:
    """python -m build."""
    assert NATIVE.fullmatch(place.wheel().name), place.wheel().name


def one_wheel(version: str, place: Place) -> None:
    """The one wheel in another Python."""
    try:
        found = run(place.tools / "bin/uv", "python", "find", "--no-python-downloads", version)
    except AssertionError:
        raise Skipped(f"there is no Python {version}") from None
    home = place.environment(f"python{version}", found.strip().splitlines()[-1], shared=False)
    run(home / "bin/pip", "install", "-q", *TORCH, "numpy")
    run(home / "bin/pip", "install", "--no-deps", place.wheel())
    check_native(home)


def no_compiler_pip(place: Place) -> None:
    """pip without a compiler: a wheel with a name of its own, a warning, and a command that repairs it."""
    home = place.environment("no-compiler-pip")
    target = place.folder / "no-compiler-wheel"
    run(home / "bin/pip", "wheel", "--no-deps", "-w", target, place.sdist(), PATH=place.bare, CXX="")
    assert [WITHOUT.fullmatch(path.name) for path in target.iterdir()] != [None], list(target.iterdir())
    # From the source distribution, whose wheels pip keeps.
    run(home / "bin/pip", "install", "--no-deps", place.sdist(), PATH=place.bare, CXX="")
    check_repair(home)


def no_compiler_uv(place: Place) -> None:
    """The same with uv."""
    home = place.environment("no-compiler-uv")
    command = [place.tools / "bin/uv", "pip", "install", "--python", home / "bin/python", "--no-deps", "."]
    run(*command, cwd=place.source, PATH=place.bare, CXX="")
    check_repair(home, PATH=place.path(place.tools))


def required(place: Place) -> None:
    """HIERMT_REQUIRE_NATIVE=1 without a compiler fails."""
    home = place.environment("required")
    command = [home / "bin/pip", "install", "--no-deps", place.source]
    told = run(*command, expect=False, PATH=place.bare, CXX="", HIERMT_REQUIRE_NATIVE="1")
    assert "HIERMT_REQUIRE_NATIVE=1, but no C++ compiler was found" in told, told


def editable(place: Place) -> None:
    """pip install -e . runs the native operators, and mypy sees it."""
    home = place.environment("editable")
    run(home / "bin/pip", "install", "-q", "setuptools>=77.0.3")
    run(home / "bin/pip", "install", "--no-build-isolation", "--no-deps", "-e", place.source)
    check_native(home)
    file = place.folder / "user.py"
    file.write_text("import hiermt\n\nreveal_type(hiermt.release_memory())\nhiermt.Graph(1)\n")
    told = run(place.tools / "bin/mypy", "--python-executable", home / "bin/python", file, expect=False)
    assert 'Revealed type is "int"' in told.replace("builtins.", ""), told
    assert 'to "Graph"' in told, told


def sdist_tests(place: Place) -> None:
    """The tests inside the source distribution are collected."""
    shutil.unpack_archive(place.sdist(), place.folder / "unpacked")
    tree = next((place.folder / "unpacked").iterdir())
    told = run(sys.executable, "-m", "pytest", "--collect-only", "-q", "tests", cwd=tree, PYTHONPATH=str(tree))
    assert re.search(r"\d{3,} tests collected", told), told[-500:]


WAYS: dict[str, Callable[[Place], None]] = {
    "sdist-tests": sdist_tests,
    "required": required,
    "pip-no-isolation": pip_no_isolation,
    "editable": editable,
    "no-compiler-pip": no_compiler_pip,
    "build": build_front_end,
    "pip-tree": pip_tree,
    "pip-sdist": pip_sdist,
    "uv-tree": uv_tree,
    "no-compiler-uv": no_compiler_uv,
    **{f"python{version}": functools.partial(one_wheel, version) for version in PYTHONS},
}


def main() -> int:
    """Runs the chosen ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--folder", type=Path, help="where the environments are made (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    args = parser.parse_args()
    chosen = args.only.split(",")
    if unknown := [name for name in chosen if name not in WAYS]:
        parser.error(f"--only: expected some of {', '.join(WAYS)}, got {', '.join(unknown)}")
    folder = Path(tempfile.mkdtemp(prefix="hiermt-matrix-", dir=args.folder))
    outcomes: dict[str, str] = {}
    try:
        place = Place(folder)
        for name in chosen:
            start = time.monotonic()
            outcomes[name], what = "passed", getattr(WAYS[name], "func", WAYS[name]).__doc__
            try:
                WAYS[name](place)
            except Skipped as reason:
                outcomes[name], what = "skipped", str(reason)
            except Exception:
                traceback.print_exc()
                outcomes[name] = "FAILED"
            print(f"{outcomes[name]} {name} ({time.monotonic() - start:.0f} s): {what}", flush=True)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    counts = [list(outcomes.values()).count(outcome) for outcome in ("passed", "FAILED", "skipped")]
    print("{} passed, {} failed, {} skipped".format(*counts))
    return bool(counts[1])


if __name__ == "__main__":
    sys.exit(main())
