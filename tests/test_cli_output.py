"""What the command line says when its output cannot be written, or there is no memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hiermt.cli import info
from hiermt.cli.main import USER_ERROR, main


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "hiermt", "info"], stdout=full, stderr=subprocess.PIPE, text=True)
    lines = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert done.returncode == USER_ERROR and lines[-1] == "error: the output cannot be written: No space left on device"
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "hiermt", "info"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("text", ["", "Unable to allocate 9 GiB"])
def test_no_memory(monkeypatch: pytest.MonkeyPatch, capsys: Any, text: str) -> None:
    def fail(_: Any) -> int:
        raise MemoryError(text)

    monkeypatch.setattr(info, "run", fail)
    assert main(["info"]) == USER_ERROR
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory") and text in told and told.count("\n") == 1


def test_info_names_python_and_torch_of_the_binary(capsys: Any) -> None:
    import sysconfig

    assert main(["info"]) == 0
    assert str(sysconfig.get_config_var("EXT_SUFFIX")).split(".")[1] in capsys.readouterr().out
