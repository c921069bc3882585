"""Training states: bitwise equal after a resume, intact after a crash, refused when damaged or foreign."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hiermt import TGCN_HierarchicalMT, data, train_hierarchical, training
from hiermt.testing import stock_graph
from hiermt.training import loop, resume

STOCKS, DAYS, FEATURES, WINDOW = 6, 40, 3, 5


def dataset() -> data.WindowDataset:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator)
    labels = [torch.randint(2, (STOCKS, DAYS), generator=generator) for _ in range(2)]
    return data.WindowDataset(series, *stock_graph(STOCKS, 8, 1), WINDOW, *labels)


def parts(hidden: int = 4, seed: int = 0, pyg: bool = False) -> tuple[object, ...]:
    """Model, optimiser, training and test loader, all made anew."""
    torch.manual_seed(seed)
    model = TGCN_HierarchicalMT(FEATURES, hidden)
    whole = dataset()
    if pyg:
        train = data.pyg_loader(whole, range(24), 8, shuffle=True, seed=3)
    else:
        train = data.WindowLoader(whole, range(24), 8, shuffle=True, seed=3)
    return model, training.adam(model, 1e-2), train, data.WindowLoader(whole, range(28, 36), 8)


def train(made: tuple[object, ...], epochs: int, **options: object) -> tuple[list[float], list[float], object]:
    model, optimizer, batches, test = made
    return train_hierarchical(model, optimizer, None, batches, test, epochs, progress=False, **options)


def weights(made: tuple[object, ...]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made[0].state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.hostile("resume")
@pytest.mark.parametrize(("cut", "patience"), [(1, None), (3, 2), (5, 2)])
def test_bitwise_equal_after_a_resume(tmp_path: Path, cut: int, patience: int | None) -> None:
    whole = parts()
    expected = train(whole, 5, patience=patience)
    path = tmp_path / "state.pt"
    train(parts(), cut, patience=patience, checkpoint=path)
    again = parts(seed=9)  # other weights, another place in the order: all of it comes from the file
    found = train(again, 5, patience=patience, checkpoint=path, resume=True)
    assert found == expected
    assert_same(weights(again), weights(whole))


def test_resume_with_the_loader_of_pyg(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    whole = parts(pyg=True)
    expected = train(whole, 4)
    path = tmp_path / "state.pt"
    train(parts(pyg=True), 2, checkpoint=path)
    again = parts(seed=9, pyg=True)
    assert train(again, 4, checkpoint=path, resume=True) == expected
    assert_same(weights(again), weights(whole))


def test_resume_without_a_file_starts_anew_and_a_finished_one_ends_at_once(tmp_path: Path) -> None:
    path, made = tmp_path / "deep" / "state.pt", parts()
    expected = train(made, 3, checkpoint=path, resume=True)
    epochs: list[int] = []
    again = parts(seed=9)
    found = train(again, 3, checkpoint=path, resume=True, callback=lambda epoch, _: epochs.append(epoch))
    assert found == expected and not epochs
    assert_same(weights(again), weights(made))


def test_every_few_epochs_and_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[int] = []
    monkeypatch.setattr(loop, "save_state", lambda *args: stored.append(args[4]["epoch"]))
    train(parts(), 7, checkpoint=tmp_path / "state.pt", checkpoint_every=3)
    assert stored == [3, 6, 7]


@pytest.mark.hostile("killed")
def test_killed_in_mid_epoch(tmp_path: Path) -> None:
    """kill -9 inside the third epoch leaves the state of the second; what follows equals a quiet training."""
    path = tmp_path / "state.pt"
    script = f"""
        import os, signal, sys
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
        import torch
        torch.set_num_threads(2)
        import test_resume
        made = list(test_resume.parts())
        loader, visited = made[2], []
        gather = loader.gather

        def deadly(*args):
            visited.append(1)
            if len(visited) == 2 * len(loader) + 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return gather(*args)

        loader.gather = deadly
        test_resume.train(tuple(made), 5, checkpoint={str(path)!r})
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert ended.returncode == -9, ended.stderr.decode()
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    whole, again = parts(), parts(seed=9)
    assert train(again, 5, checkpoint=path, resume=True) == train(whole, 5)
    assert_same(weights(again), weights(whole))


def test_full_disk_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    train(parts(), 2, checkpoint=path)
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        with open(self, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        train(parts(), 4, checkpoint=path, resume=True)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def refused(path: Path, made: tuple[object, ...], message: str) -> None:
    """Resuming raises, and changes neither model nor optimiser nor loaders."""
    before, order = weights(made), made[2].generator.get_state()
    with pytest.raises(ValueError, match=message):
        train(made, 5, checkpoint=path, resume=True)
    assert_same(weights(made), before)
    assert not made[1].state and torch.equal(made[2].generator.get_state(), order)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "state.pt"
    train(parts(), 1, checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, parts(), "not a readable training state")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"not a file of torch's at all")
    refused(path, parts(), "not a readable training state")
    torch.save(parts()[0].state_dict(), path)
    refused(path, parts(), "not a training state of hiermt")
    torch.save([1, 2], path)
    refused(path, parts(), "not a training state of hiermt")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.hostile("damaged-state")
def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    path, target = tmp_path / "state.pt", tmp_path / "executed"
    torch.save({"format": resume.FORMAT, "model": Evil(target)}, path)
    refused(path, parts(), "not a readable training state")
    assert not target.exists()


def test_states_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    train(parts(), 1, checkpoint=path)
    refused(path, parts(hidden=5), "parameter|shape")
    model, _, batches, test = parts()
    refused(path, (model, torch.optim.SGD(model.parameters(), lr=0.1), batches, test), "optimizer Adam, this is SGD")
    half = torch.optim.Adam(list(model.parameters())[:4])
    refused(path, (model, half, batches, test), "parameters in its groups")
    refused(path, (*parts()[:3], None), "2 loaders, there are 1")
    one_layer = TGCN_HierarchicalMT(FEATURES, 4, 1)
    refused(path, (one_layer, training.adam(one_layer), batches, test), "parameters in its groups")


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume: needs a checkpoint to continue from"):
        train(parts(), 1, resume=True)
    with pytest.raises(ValueError, match="checkpoint_every: expected 1 or more, got 0"):
        train(parts(), 1, checkpoint=tmp_path / "state.pt", checkpoint_every=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        resume.load_state(tmp_path / "nowhere", *parts()[:2], [])


def test_a_missing_tensorboard_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        train(parts(), 1, tensorboard=tmp_path)


def test_tensorboard_gets_every_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[tuple[str, int]] = []

    class Writer:
        def add_scalar(self, name: str, value: float, epoch: int) -> None:
            written.append((name, epoch))

        def close(self) -> None:
            written.append(("closed", 0))

    monkeypatch.setattr(loop, "summary_writer", lambda folder: Writer())
    train(parts(), 2, tensorboard=tmp_path)
    assert len(written) == 2 * 6 + 1 and written[-1] == ("closed", 0)
    assert ("total_loss/train", 1) in written and ("direction_loss/test", 2) in written


def test_adam_is_fused_where_torch_offers_it() -> None:
    model = TGCN_HierarchicalMT(FEATURES, 4)
    assert training.adam(model).defaults["fused"]
    assert not training.adam(model, foreach=False).defaults["fused"]
    assert training.adam(model, 0.5, betas=(0.5, 0.5)).defaults["lr"] == 0.5
