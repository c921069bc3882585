"""What setup.py builds, leaves out and refuses."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import setuptools

from support.extension_probe import LIBRARY, ROOT, assert_fell_back, outcome


def run_setup(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HIERMT_")}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source tree, without anything that was built."""
    built = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "cmake", "csrc", "hiermt", "README.md", "MANIFEST.in"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=built)
        elif source.is_file():
            shutil.copy(source, tmp_path / name)
    return tmp_path


def test_build_none_succeeds_and_says_so(tree: Path) -> None:
    stale = tree / "hiermt" / LIBRARY
    stale.write_bytes(b"of an earlier build")
    done = run_setup(tree, HIERMT_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert "THE NATIVE LIBRARY IS LEFT OUT" in done.stderr
    assert not stale.exists()
    assert_fell_back(outcome(tree / "hiermt"), "left out of the build", "HIERMT_BUILD=none")


def test_build_without_a_compiler_succeeds_and_says_so(tree: Path, tmp_path: Path) -> None:
    done = run_setup(tree, PATH=str(tmp_path / "nothing"), CXX="", FORCE_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "THE NATIVE LIBRARY IS LEFT OUT" in done.stderr
    assert "no C++ compiler was found" in done.stderr
    assert_fell_back(outcome(tree / "hiermt"), "left out of the build", "no C++ compiler was found")


def test_build_mode_is_checked(tree: Path) -> None:
    done = run_setup(tree, HIERMT_BUILD="maybe")
    assert done.returncode != 0
    assert "HIERMT_BUILD: expected auto or none, got 'maybe'" in done.stderr


def test_forced_cuda_without_nvcc_fails(tree: Path, tmp_path: Path) -> None:
    if Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc is where it is always looked for")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("cmake", "ninja", "c++"):
        found = shutil.which(tool)
        if found is None:
            pytest.skip(f"{tool} is not on the PATH")
        (tools / tool).symlink_to(found)
    done = run_setup(tree, PATH=str(tools), FORCE_CUDA="1", CUDA_HOME="", CUDA_PATH="", CUDACXX="")
    assert done.returncode != 0
    assert "FORCE_CUDA=1: expected nvcc" in done.stderr


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that finds what a build needs."""
    monkeypatch.syspath_prepend(str(ROOT / "cmake"))
    return importlib.import_module("toolchain")


def fake_nvcc(folder: Path, release: str, architectures: list[int]) -> str:
    path = folder / "nvcc"
    listed = " ".join(f"compute_{one}" for one in architectures)
    lines = ["#!/bin/sh", f'[ "$1" = --version ] && echo "Cuda compilation tools, release {release}, V{release}.1"']
    lines.append(f'[ "$1" = --list-gpu-arch ] && printf "%s\\n" {listed}')
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("release", "known", "expected"),
    [
        ("13.0", [75, 80, 90, 100, 110, 120, 121], "80-real;90-real;100;120"),
        ("12.6", [50, 75, 80, 86, 90], "80-real;90"),
        ("12.8", [50, 80, 90, 100, 120], "80-real;90-real;100;120"),
    ],
)
def test_default_architectures(toolchain: Any, tmp_path: Path, release: str, known: list[int], expected: str) -> None:
    options = importlib.import_module("options").read({})
    assert toolchain.architectures(options, fake_nvcc(tmp_path, release, known)) == expected


@pytest.mark.parametrize(
    ("release", "cuda", "told"),
    [("13.0", "12.8", True), ("12.9", "12.6", False), ("12.6", "13.0", False), ("13.0", None, False)],
)
def test_a_toolkit_later_than_torch_is_told(
    toolchain: Any, tmp_path: Path, release: str, cuda: str | None, told: bool
) -> None:
    torch = toolchain.Torch(tmp_path, "2.11.0", cuda)
    notes = "".join(toolchain.toolkit_notes(torch, fake_nvcc(tmp_path, release, [90])))
    assert bool(notes) is told
    assert not told or ("is of CUDA 13.0, torch 2.11.0 of CUDA 12.8" in notes and "set CUDA_HOME" in notes)


@pytest.mark.slow
def test_pip_install_without_a_compiler(tree: Path, tmp_path: Path) -> None:
    """As a user without build tools has it; torch and the rest come from the environment of the tests."""
    if find_spec("wheel") is None and tuple(map(int, setuptools.__version__.split(".")[:2])) < (70, 1):
        pytest.skip("this setuptools needs the package wheel")
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    site = next((home / "lib").glob("python3.*")) / "site-packages"
    command = [
        *[sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"],
        *["--target", str(site), str(tree)],
    ]
    environment = {**os.environ, "PATH": str(tmp_path / "nothing"), "CXX": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_fell_back(outcome(site / "hiermt"), "left out of the build")
