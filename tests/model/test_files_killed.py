"""Files that killed processes left, and many writers at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.file_writes import LOAD, names, write

pytest.importorskip("fcntl")


WRITE_AND_WAIT = """
with files.atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"x" * 100_000)
    print("writing", flush=True)
    sys.stdin.read()
"""


def started(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD + WRITE_AND_WAIT, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write(path, "old")
    processes = [started(path) for _ in range(3)]
    for process in processes[:2]:
        process.kill()
        process.wait()
    assert len(names(tmp_path)) == 4 and path.read_text() == "old"
    write(path, "new")
    assert len(names(tmp_path)) == 2, "what the living process writes has to stay"
    living = processes[2]
    living.communicate("")
    assert living.returncode == 0 and names(tmp_path) == ["state.pt"] and len(path.read_bytes()) == 100_000


@pytest.mark.hostile("killed")
@pytest.mark.parametrize("through_a_link", [False, True])
def test_killed_again_and_again(tmp_path: Path, through_a_link: bool) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    path = folder / "state.pt"
    if through_a_link:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    for _ in range(4):
        process = started(path)
        process.kill()
        process.wait()
        assert len(names(folder)) == 1
    write(path)
    assert names(folder) == ["state.pt"]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    others = [
        ".hiermt-writing-notes",
        ".hiermt-writing-0123456789abcde",
        ".state.pt.x.tmp",
        "hiermt-writing-0123456789abcdef",
        ".hiermt-writing-0123456789ABCDEF.pt",
    ]
    for name in others:
        (tmp_path / name).write_text("kept")
    (tmp_path / ".hiermt-writing-00000000000000aa.pt").mkdir()
    os.mkfifo(tmp_path / ".hiermt-writing-00000000000000bb.pt")
    (tmp_path / ".hiermt-writing-00000000000000cc.pt").symlink_to(others[0])
    before = names(tmp_path)
    write(tmp_path / "state.pt")
    assert names(tmp_path) == sorted([*before, "state.pt"])


@pytest.mark.hostile("writers")
def test_many_threads_write_one_file(tmp_path: Path) -> None:
    path, failures = tmp_path / "file", []

    def run(i: int) -> None:
        try:
            for _ in range(20):
                write(path, str(i) * 10_000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and names(tmp_path) == ["file"]
    text = path.read_text()
    assert len(text) == 10_000 and len(set(text)) == 1


def test_long_names(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".pt")
    write(path)
    assert path.read_text() == "new"
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        write(tmp_path / ("x" * 300))
    assert len(names(tmp_path)) == 1
