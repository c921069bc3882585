"""What is written takes the place of a regular file, whole or not at all, and of nothing else."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hiermt
from hiermt import data, testing
from hiermt.cli import pictures
from hiermt.cli.main import USER_ERROR, main
from hiermt.io.files import atomic_write, atomic_write_all, check_writable
from hiermt.training import adam
from support.file_writes import LOAD, names, quota, write

pytest.importorskip("fcntl")


# ---- what is in the place --------------------------------------------------------------------------------------------


@pytest.mark.hostile("outputs")
@pytest.mark.parametrize("links", [1, 2, 5])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, links: int, relative: bool, exists: bool) -> None:
    folder, elsewhere = tmp_path / "here", tmp_path / "there"
    folder.mkdir(), elsewhere.mkdir()
    target = elsewhere / "target.txt"
    if exists:
        target.write_text("old")
    path = target
    for i in range(links):
        link = folder / f"link-{i}"
        link.symlink_to(os.path.relpath(path, folder) if relative else path)
        path = link
    before = [os.readlink(folder / f"link-{i}") for i in range(links)]
    check_writable(path)
    write(path)
    assert [os.readlink(folder / f"link-{i}") for i in range(links)] == before
    assert target.read_text() == "new" and target.is_file() and not target.is_symlink()
    assert names(elsewhere) == ["target.txt"] and len(names(folder)) == links


def test_a_link_in_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "file").write_text("old")
    (tmp_path / "real" / "deep" / "up").symlink_to("../file")
    (tmp_path / "folder").symlink_to("real/deep")
    write(tmp_path / "folder" / "up")
    assert (tmp_path / "real" / "file").read_text() == "new"
    assert names(tmp_path / "real" / "deep") == ["up"]


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def bound(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


HOSTILE: dict[str, tuple[Callable[[Path], None], type[OSError], str]] = {
    "folder": (lambda path: path.mkdir(), IsADirectoryError, "folder"),
    "folder with content": (lambda path: (path / "x").mkdir(parents=True), IsADirectoryError, "folder"),
    "pipe": (lambda path: os.mkfifo(path), OSError, "pipe"),
    "socket": (bound, OSError, "socket"),
    "link to a folder": (lambda path: path.symlink_to(path.parent), IsADirectoryError, "folder"),
    "link to a device": (lambda path: path.symlink_to("/dev/null"), OSError, "device"),
    "link to standard output": (lambda path: path.symlink_to("/dev/stdout"), OSError, "device|pipe"),
    "link to itself": (lambda path: path.symlink_to(path), OSError, "leads back"),
    "loop of two": (loop, OSError, "leads back"),
    "link into no folder": (lambda path: path.symlink_to(path.parent / "no" / "file"), FileNotFoundError, "not there"),
}


@pytest.fixture(params=HOSTILE)
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, type[OSError], str]:
    make, error, words = HOSTILE[request.param]
    (tmp_path / "place").mkdir()
    path = tmp_path / "place" / "model.pt"
    make(path)
    return path, error, words


def kinds(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.lstat().st_mode, path.lstat().st_ino) for path in folder.iterdir()}


@pytest.mark.hostile("outputs")
def test_anything_else_is_refused_before_it_is_touched(hostile: tuple[Path, type[OSError], str]) -> None:
    path, error, words = hostile
    before = kinds(path.parent)
    for action in (check_writable, write, lambda path: atomic_write_all([path.with_name("first"), path]).__enter__()):
        with pytest.raises(error, match=words) as raised:
            action(path)
        assert str(raised.value.filename) == str(path)
        assert kinds(path.parent) == before


@pytest.mark.hostile("outputs")
@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/tty", "."])
def test_streams_and_devices_are_refused(path: str) -> None:
    with pytest.raises(OSError, match=r"device|pipe|folder"):
        write(path)


def test_a_redirected_standard_output_is_not_replaced(tmp_path: Path) -> None:
    code = LOAD + "print('kept', flush=True)\nfiles.atomic_write('/dev/stdout').__enter__()"
    with open(tmp_path / "out", "w") as out:
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "device or stream" in done.stderr
    assert (tmp_path / "out").read_text() == "kept\n" and names(tmp_path) == ["out"]


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "a" / "x"):
        for action in (check_writable, write):
            with pytest.raises(NotADirectoryError, match="not a folder"):
                action(path)
    assert (tmp_path / "file").read_text() == "old"


# ---- refusals before the work starts -------------------------------------------------------------------------------


def dataset() -> data.WindowDataset:
    labels = torch.randint(2, (12, 40))
    return data.WindowDataset(torch.randn(12, 40, 5), *testing.stock_graph(12, 40), 7, labels, labels)


def test_a_training_refuses_its_checkpoint_first(hostile: tuple[Path, type[OSError], str]) -> None:
    path, error, words = hostile
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    before = [p.clone() for p in model.parameters()]
    for resume in (False, True):
        with pytest.raises(error, match=words):
            hiermt.train_hierarchical(
                model,
                adam(model),
                None,
                data.WindowLoader(dataset(), batch_size=8),
                None,
                num_epochs=1,
                checkpoint=path,
                resume=resume,
                progress=False,
            )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_model_folder_with_a_pipe_in_it(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="pipe"):
        hiermt.TGCN_HierarchicalMT(5, 8).save_pretrained(tmp_path)
    assert names(tmp_path) == [name]


def test_a_model_that_cannot_be_stored_makes_no_folder(tmp_path: Path) -> None:
    model = hiermt.TGCN(5, 3, 8, output_activation=torch.nn.Sigmoid())
    with pytest.raises(ValueError, match="output_activation"):
        model.save_pretrained(tmp_path / "model")
    assert not names(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "metrics.json", "predictions.csv", "curves.png", "confusion.png"]
)
def test_the_train_command_refuses_before_it_reads_a_price(tmp_path: Path, name: str, capsys: Any) -> None:
    (tmp_path / name).mkdir()
    assert main(["train", "--prices", "not-there.csv", "--out", str(tmp_path)]) == USER_ERROR
    told = capsys.readouterr().err
    assert "is a folder" in told and name in told and told.count("\n") == 1


@pytest.mark.parametrize("option", [["train", "--out", "{}", "--checkpoint"], ["predict", "--model", "no", "--out"]])
def test_commands_refuse_a_pipe_before_they_read_a_price(tmp_path: Path, option: list[str], capsys: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    arguments = [part.format(tmp_path / "out") for part in option]
    assert main([*arguments, str(tmp_path / "pipe"), "--prices", "not-there.csv"]) == USER_ERROR
    told = capsys.readouterr().err
    assert "is a pipe" in told and told.count("\n") == 1
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_an_out_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    hiermt.TGCN_HierarchicalMT(5, 8).save_pretrained(tmp_path / "link")
    assert names(tmp_path / "real") == ["config.json", "model.safetensors"] and (tmp_path / "link").is_symlink()


# ---- permissions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o666, 0o755, 0o700])
def test_permissions_of_the_old_file_are_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    with atomic_write(path) as temporary:
        assert not stat.S_IMODE(temporary.stat().st_mode) & ~mode & 0o077
        temporary.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "new"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def as_nobody(action: Callable[[], object]) -> str:
    """What `action` raises for a user who may be refused; root may write everywhere."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        told = "nothing"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            action()
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


@pytest.mark.parametrize("protected", ["folder", "file"])
@pytest.mark.parametrize("action", [check_writable, write])
def test_a_write_protected_place_is_refused(protected: str, action: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "file"
        path.write_text("old")
        path.chmod(0o444 if protected == "file" else 0o666)
        folder.chmod(0o555 if protected == "folder" else 0o777)
        told = as_nobody(lambda: action(path))
        assert told.startswith("PermissionError") and str(path) in told
        assert ("write-protected" if protected == "file" else "cannot be written to") in told
        assert names(folder) == ["file"] and path.read_text() == "old"
        folder.chmod(0o755)


# ---- full disks ------------------------------------------------------------------------------------------------------


def save_checkpoint(path: Path) -> None:
    from hiermt.training.resume import save_state

    model = hiermt.TGCN_HierarchicalMT(5, 16)
    save_state(path, model, adam(model), [], {"epoch": 1})


def draw(path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures.draw_curves({"train_total_loss": [1.0, 0.5]}, path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write(path, "x" * 100_000),
    "training state": save_checkpoint,
    "model": lambda path: hiermt.TGCN_HierarchicalMT(5, 16).save_pretrained(path),
    "picture": draw,
}


@pytest.mark.hostile("interrupted-write")
@pytest.mark.parametrize("writer", WRITERS.values(), ids=list(WRITERS))
@pytest.mark.parametrize("most", [0, 100, 5_000])
def test_a_used_up_quota_leaves_the_old_file(tmp_path: Path, most: int, writer: Any) -> None:
    path = tmp_path / "result"
    writer(path)
    folder = path if path.is_dir() else tmp_path
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with quota(most), pytest.raises(OSError, match="nothing was changed") as raised:
        writer(path)
    assert raised.value.errno == errno.EFBIG and str(raised.value.filename).startswith(str(path))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.hostile("interrupted-write")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("when", ["fsync", "replace", "open"])
def test_a_failing_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, when: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*arguments: Any, **_: Any) -> None:
        raise OSError(code, os.strerror(code), str(arguments[0]) if when != "fsync" else None)

    monkeypatch.setattr(os, when, fail)
    with pytest.raises(OSError, match="nothing was changed") as raised:
        write(path)
    monkeypatch.undo()
    assert raised.value.errno == code and raised.value.filename == str(path)
    assert names(tmp_path) == ["file"] and path.read_text() == "old"


def test_several_files_are_flushed_before_the_first_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths))[1])
    with atomic_write_all([tmp_path / "a", tmp_path / "b"]) as temporaries:
        for temporary in temporaries:
            temporary.write_text("x")
    assert done == ["fsync", "fsync", "replace", "replace", "fsync"]  # the last one flushes the folder
