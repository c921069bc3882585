"""Disks that are full, folders that vanish or cannot be written to, and two processes that write one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import hiermt
from hiermt import data
from hiermt.testing import stock_graph
from support.file_writes import quota
from support.killing import killed_again_and_again

pytestmark = pytest.mark.hostile("interrupted-write")


def parts() -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(3, 8)
    labels = [torch.randint(2, (6, 40)) for _ in range(2)]
    whole = data.WindowDataset(torch.randn(6, 40, 3), *stock_graph(6, 8, 1), 5, *labels)
    return model, torch.optim.Adam(model.parameters(), 0.01), None, data.WindowLoader(whole, range(24), 8), None


def train(path: Path | None, epochs: int, callback: Any = None, resume: bool = False) -> dict[str, torch.Tensor]:
    made = parts()
    hiermt.train_hierarchical(*made, epochs, checkpoint=path, callback=callback, resume=resume, progress=False)
    return {name: value.clone() for name, value in made[0].state_dict().items()}


def assert_goes_on(path: Path, epochs: int) -> None:
    """The state that is left leads to the weights of a training without a fault."""
    expected = train(None, epochs)
    found = train(path, epochs, resume=True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_quota_that_is_used_up_within_a_training(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"

    def full(epoch: int, _: Any) -> None:
        if epoch == 2:
            limits.enter_context(quota(1000))

    with contextlib.ExitStack() as limits, pytest.raises(OSError, match="nothing was changed") as raised:
        train(path, 5, full)
    assert raised.value.filename == str(path)
    assert [one.name for one in tmp_path.iterdir()] == ["state.pt"]
    assert_goes_on(path, 5)


def test_a_full_disk_within_a_training(tmp_path: Path) -> None:
    """A disk of memory with room for two states and a half."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        path = tmp_path / "state.pt"

        def fill(epoch: int, _: Any) -> None:
            if epoch == 2:
                with pytest.raises(OSError, match="No space left"):
                    (tmp_path / "other").write_bytes(bytes(10**6))

        with pytest.raises(OSError, match=r"No space left.*nothing was changed"):
            train(path, 5, fill)
        (tmp_path / "other").unlink()
        assert [one.name for one in tmp_path.iterdir()] == ["state.pt"]
        assert_goes_on(path, 5)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_folder_that_vanishes_within_a_training(tmp_path: Path) -> None:
    """It comes back with the next checkpoint, and the training goes on."""
    path = tmp_path / "folder" / "state.pt"

    def vanish(epoch: int, _: Any) -> None:
        if epoch == 2:
            shutil.rmtree(path.parent)

    train(path, 4, vanish)
    assert_goes_on(path, 5)


def test_a_folder_that_becomes_a_file_within_a_training(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.pt"

    def swap(epoch: int, _: Any) -> None:
        if epoch == 2:
            shutil.rmtree(path.parent)
            path.parent.write_text("another thing")

    with pytest.raises(OSError, match="not a folder") as raised:
        train(path, 4, swap)
    assert raised.value.filename == str(path) and path.parent.read_text() == "another thing"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions of POSIX")
def test_a_folder_that_is_closed_within_a_training(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    path = tmp_path / "folder" / "state.pt"
    with pytest.raises(PermissionError, match="folder"):
        train(path, 4, lambda epoch, _: path.parent.chmod(0o500) if epoch == 2 else None)
    path.parent.chmod(0o700)
    assert_goes_on(path, 5)


def save_in_turn(folder: Path) -> None:
    """Two children that save models of their own in one folder, at once."""
    children = []
    for name in ("between", "after"):
        child = os.fork()
        if child == 0:
            try:
                model = hiermt.TGCN_HierarchicalMT(3, 8, conv_activation=name)
                for _ in range(60):
                    model.save_pretrained(folder / "model")
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)


@pytest.mark.hostile("writers")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_save_into_one_folder(tmp_path: Path) -> None:
    """What is left is whole, or refused as the files of two saves, never one model under the config of another."""
    pytest.importorskip("safetensors")
    killed_again_and_again("faults.test_disk", "save_in_turn", tmp_path, 0, 0)
    folder = tmp_path / "model"
    assert sorted(one.name for one in folder.iterdir()) == ["config.json", "model.safetensors"]
    try:
        hiermt.TGCN_HierarchicalMT.from_pretrained(folder)
    except ValueError as error:
        if "not of one save" not in str(error):
            raise
    hiermt.TGCN_HierarchicalMT(3, 8).save_pretrained(folder)
    assert hiermt.TGCN_HierarchicalMT.from_pretrained(folder).config["conv_activation"] == "between"
