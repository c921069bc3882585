"""What surrounds the code agrees with it: targets, workflows, versions, options of the build."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hiermt

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = {name for line in re.findall(r"^([a-z][a-z -]*):(?!=)", MAKEFILE, re.M) for name in line.split()}


def test_targets_that_build_in_place_agree_on_the_architectures(tmp_path: Path) -> None:
    """One that asked for others would build them beside those of the last."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    machine = [f"VENV={tmp_path}", "NVCC=nvcc", "GPU=", "TORCH_CUDA_ARCH_LIST="]
    command = ["make", "-n", "test", "build", "check", "docs", *machine]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    builds = [line for line in told.splitlines() if " setup.py " in line or " -e " in line]
    assert len(builds) >= 4
    assert all("TORCH_CUDA_ARCH_LIST=9.0+PTX NVCC_APPEND_FLAGS=--no-compress" in line for line in builds), builds


def test_make_help_lists_every_target() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    told = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = {word for line in told.splitlines() for word in re.findall(r"[a-z-]+", line)}
    assert listed >= TARGETS
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE, re.M)
    assert phony is not None
    assert set(phony[1].replace("\\\n", " ").split()) == TARGETS


def steps(value: Any) -> list[str]:
    """All `run` entries of a workflow."""
    if isinstance(value, dict):
        here = [value["run"]] if isinstance(value.get("run"), str) else []
        return here + [step for entry in value.values() for step in steps(entry)]
    return [step for entry in value for step in steps(entry)] if isinstance(value, list) else []


def test_workflows_call_targets_that_exist() -> None:
    yaml = pytest.importorskip("yaml")
    called: set[str] = set()
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for step in steps(yaml.safe_load(path.read_text())):
            called |= set(re.findall(r"^make ([a-z-]+)", step, re.M))
    assert called <= TARGETS
    assert called >= {"lint", "test", "docs", "wheel", "gpu", "sanitize"}
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        yaml.safe_load(path.read_text())
    assert "hiermt info" in (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()


def test_commands_of_contributing_exist() -> None:
    told = set(re.findall(r"`make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert told <= TARGETS


def test_versions_agree() -> None:
    newest = re.search(
        r"^## \[(\d[^]]*)\] - (unreleased|\d{4}-\d{2}-\d{2})$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert newest is not None
    assert newest[1] == hiermt.__version__
    assert f"\nversion: {hiermt.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HIERMT_BUILD", "maybe", "expected auto or none, got 'maybe'"),
        ("HIERMT_REQUIRE_NATIVE", "yes", "expected 0 or 1, got 'yes'"),
        ("FORCE_CUDA", "2", "expected 0 or 1, got '2'"),
        ("MAX_JOBS", "0", "expected a positive whole number of compilations, got '0'"),
        ("MAX_JOBS", "two", "expected a positive whole number of compilations, got 'two'"),
        ("TORCH_CUDA_ARCH_LIST", "8.0;nine", "expected 9.0 or 9.0+PTX and the like, got 'nine'"),
        ("HIERMT_CMAKE_ARGS", "fast", "expected arguments such as -DNAME=VALUE, got 'fast'"),
        ("HIERMT_CMAKE_ARGS", '"-D', "expected words as in a shell"),
        ("HIERMT_BUILD_DIR", __file__, "expected a folder that can be written"),
        ("CXX", "no-such-compiler -O2", "expected a C++ compiler such as g++ or clang++, got 'no-such-compiler -O2'"),
        ("CUDACXX", "/no/nvcc", "expected the path of nvcc, got '/no/nvcc'"),
    ],
)
def test_options_of_the_build_are_checked(
    name: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "cmake"))
    import options

    with pytest.raises(options.BuildError) as caught:
        options.read({name: value})
    assert str(caught.value).startswith(f"hiermt: {name}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_of_the_build_that_contradict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "cmake"))
    import options

    with pytest.raises(options.BuildError, match=r"HIERMT_REQUIRE_NATIVE=1 contradicts HIERMT_BUILD=none"):
        options.read({"HIERMT_REQUIRE_NATIVE": "1", "HIERMT_BUILD": "none"})
    chosen = options.read({"TORCH_CUDA_ARCH_LIST": "8.0 9.0a,10.0+PTX", "MAX_JOBS": "3", "CXX": sys.executable})
    assert chosen.architectures == ("80-real", "90a-real", "100")
    assert (chosen.jobs, chosen.cuda, chosen.required) == (3, None, False)
