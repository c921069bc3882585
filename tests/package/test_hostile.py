"""Every class of hostile input and of faults has a test, and the table of the documentation says which."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

from support import hostile, planted
from support.planted import ROOT
from support.planted_faults import FAULTS, Fault


def test_every_class_has_a_test() -> None:
    covered = {name for one in hostile.marked() for name in one.classes}
    assert covered >= set(hostile.CLASSES), f"without a test: {sorted(set(hostile.CLASSES) - covered)}"
    assert covered <= set(hostile.CLASSES), f"unknown: {sorted(covered - set(hostile.CLASSES))}"


def test_the_table_is_that_of_the_markers() -> None:
    assert hostile.PAGE.read_text("utf-8") == hostile.page(), "run: PYTHONPATH=tests python -m support.hostile"


def test_every_class_has_a_fault_that_can_be_planted_and_is_its_tests() -> None:
    """``make planted`` sees the tests fail; here, that the sources still have the texts and the tests the markers."""
    assert set(FAULTS) == set(hostile.CLASSES)
    marked = hostile.marked()
    for name, faults in FAULTS.items():
        assert faults, f"{name}: no fault"
        for fault in faults:
            changed = fault.planted((ROOT / fault.file).read_text("utf-8"))
            assert not fault.file.endswith(".py") or ast.parse(changed)
            path, *_, test = fault.test.split("::") if "::" in fault.test else (fault.test, "")
            assert any(one.path == path and name in one.classes and one.name in (None, test) for one in marked), (
                f"{name}: {fault.test} is not one of its tests"
            )


def test_a_fault_that_no_test_sees_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of two faults in a tree of two lines one changes nothing."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "number.py").write_text("NUMBER = 1\n")
    (tmp_path / "tests/test_number.py").write_text(
        "from number import NUMBER\n\n\ndef test_it():\n    assert NUMBER == 1\n"
    )
    faults = [Fault("number.py", "= 1", text, "test_number.py") for text in ("= 1  # the same", "= 2")]
    monkeypatch.setattr(planted, "ROOT", tmp_path)
    monkeypatch.setitem(FAULTS, "messages", faults)
    assert planted.holes(["messages"]) == ["messages"]
