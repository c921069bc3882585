"""Output that cannot be written, lack of memory, and invalid paths on the command line."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hiermt.cli import info
from hiermt.cli.main import USER_ERROR, main


@pytest.mark.hostile("interrupted-write")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "hiermt", "info"], stdout=full, stderr=subprocess.PIPE, text=True)
    lines = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert done.returncode == USER_ERROR and lines[-1] == "error: the output cannot be written: No space left on device"
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_closed_pipe_is_not_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "hiermt", "info"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.hostile("memory")
@pytest.mark.parametrize("text", ["", "Unable to allocate 9 GiB"])
def test_no_memory(monkeypatch: pytest.MonkeyPatch, capsys: Any, text: str) -> None:
    def fail(_: Any) -> int:
        raise MemoryError(text)

    monkeypatch.setattr(info, "run", fail)
    assert main(["info"]) == USER_ERROR
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory") and text in told and told.count("\n") == 1


def test_info_names_python_and_torch_of_the_binary(capsys: Any) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert found["python"] in out and found["torch"] in out and platform.python_version() in found["python"]
    assert torch.__version__ in found["torch"]
    assert not found["native"] or f"built against torch {found['native']['torch']}" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--prices", "p.csv", "--out", ""],
        ["train", "--prices", "", "--out", "m"],
        ["train", "--prices", "p.csv", "--out", "m", "--checkpoint", " "],
        ["predict", "--model", "", "--prices", "p.csv"],
        ["predict", "--model", "m", "--prices", "p.csv", "--out", "x/"],
        ["predict", "--model", "m\0", "--prices", "p.csv"],
        ["demo", "--out", ""],
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == USER_ERROR and "expected " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_numbers_beyond_64_bits(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--prices", "p.csv", "--out", "m", "--seed", str(2**70)])
    assert "expected a whole number below 2**63" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["loop", "dangling"])
def test_an_output_folder_that_is_a_broken_link(link: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("gone/further")
    assert main(["train", "--prices", "p.csv", "--out", str(tmp_path / link)]) == USER_ERROR
    assert "is a broken link" in capsys.readouterr().err


def test_a_device_that_computes_nothing(tmp_path: Path, capsys: Any) -> None:
    assert main(["train", "--prices", "p.csv", "--out", str(tmp_path), "--device", "meta"]) == USER_ERROR
    assert "--device meta: computes nothing" in capsys.readouterr().err


def test_no_memory_for_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(info, "run", lambda _: torch.empty(2**60, dtype=torch.uint8, device="cpu"))
    assert main(["info"]) == USER_ERROR
    assert capsys.readouterr().err.startswith("error: out of memory")


def test_without_standard_output() -> None:
    command = f'"{sys.executable}" -m hiermt info >&-'
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
