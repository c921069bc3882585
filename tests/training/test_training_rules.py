"""The training loop: refused arguments, stopping rules and accepted criteria."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hiermt import MultiTaskLoss, data
from support.resume_cases import Heads, Parts, assert_equal, batches, dataset, parts, seed


class Document(nn.Module):
    """The loss of the user's document, as it stands there."""

    def __init__(self, lambda_direction: float = 1.0) -> None:
        super().__init__()
        self.lambda_direction = lambda_direction
        self.ce_loss = nn.CrossEntropyLoss(reduction="none")

    def forward(
        self,
        signal_logits: Tensor,
        direction_logits: Tensor,
        signal_targets: Tensor,
        direction_targets: Tensor,
        signal_mask: Tensor | None = None,
    ) -> Any:
        signal_loss = self.ce_loss(signal_logits, signal_targets).mean()
        if signal_mask is not None:
            if signal_mask.sum() > 0:
                direction_loss = self.ce_loss(direction_logits[signal_mask], direction_targets[signal_mask]).mean()
            else:
                direction_loss = 0.0
        else:
            direction_loss = self.ce_loss(direction_logits, direction_targets).mean()
        total_loss = signal_loss + self.lambda_direction * direction_loss
        return total_loss, {
            "signal_loss": signal_loss.item(),
            "direction_loss": direction_loss.item() if isinstance(direction_loss, torch.Tensor) else direction_loss,
            "total_loss": total_loss.item(),
        }


def test_the_loss_of_the_document_over_a_window_loader() -> None:
    seed(0)
    ours = parts(criterion=MultiTaskLoss(0.5)).run(3)
    seed(0)
    theirs = parts(criterion=Document(0.5)).run(3)
    for one, other in zip((*ours[:2], *ours[2].values()), (*theirs[:2], *theirs[2].values()), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("loader", [None, batches])
def test_a_criterion_that_returns_a_bare_loss(loader: Any) -> None:
    class Bare(Document):
        def forward(self, *args: Any, **options: Any) -> Any:
            return super().forward(*args, **options)[0]

    model = None if loader is None else Heads
    seed(0)
    expected = parts(criterion=Document(), train=loader, test=loader, model=model).run(2)
    for criterion in (Bare(), lambda *args, signal_mask: Document()(*args, signal_mask)[0].reshape(1)):
        seed(0)
        found = parts(criterion=criterion, train=loader, test=loader, model=model).run(2)
        assert found[:2] == expected[:2] and found[2]["total_loss"] == found[0]
        assert np.isnan(found[2]["signal_loss"]).all() and np.isnan(found[2]["direction_loss"]).all()


def test_an_invalid_loss_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self, result: Any) -> None:
            super().__init__()
            self.result = result

        def forward(self, *args: Any, **options: Any) -> Any:
            return self.result

    for result in (1.5, None, (torch.zeros(()), 3)):
        with pytest.raises(TypeError, match="criterion: expected a loss"):
            parts(criterion=Fixed(result)).run(1)
    with pytest.raises(ValueError, match=r"criterion: expected a loss of one number, got shape \[8\]"):
        parts(criterion=Fixed(torch.zeros(8))).run(1)


def test_a_subclass_of_our_loss_with_a_forward_of_its_own() -> None:
    class Doubled(MultiTaskLoss):
        def forward(self, *args: Any, **options: Any) -> Any:
            loss, found = super().forward(*args, **options)
            return 2 * loss, {name: 2 * value for name, value in found.items()}

    hooked = MultiTaskLoss()
    hooked.register_forward_hook(lambda module, args, result: (2 * result[0], result[1]))
    for criterion in (Doubled(), hooked):
        seed(0)
        once = parts(lambda m: torch.optim.SGD(m.parameters(), 0.0)).run(1)
        seed(0)
        twice = parts(lambda m: torch.optim.SGD(m.parameters(), 0.0), criterion=criterion).run(1)
        assert twice[0][0] == pytest.approx(2 * once[0][0])


def nan_from(epoch: int) -> Any:
    def callback(made: Parts) -> Any:
        def change(done: int, metrics: dict[str, float]) -> None:
            if done == epoch - 1:
                made.train[1].x = made.train[1].x * float("nan")

        return change

    return callback


@pytest.mark.hostile("divergence")
def test_a_loss_that_turns_nan_stops_and_the_last_good_state_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "state.pt", tmp_path / "other.pt"
    seed(0)
    made = parts(model=Heads, train=batches, callback=nan_from(3), test=batches)
    with pytest.raises(FloatingPointError, match="epoch 3: the train loss is nan"):
        made.run(6, checkpoint=path)
    seed(0)
    parts(model=Heads, train=batches, test=batches).run(2, checkpoint=other)
    stored, expected = (torch.load(file, weights_only=True) for file in (path, other))
    assert stored["progress"]["epoch"] == 2
    assert_equal(stored["model"], expected["model"])
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["other.pt", "state.pt"]


@pytest.mark.hostile("divergence")
def test_weights_that_turn_nan_in_the_last_step_are_not_stored(tmp_path: Path) -> None:
    """The losses of that epoch are still finite."""

    class Last(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1
            result = super().step(closure)
            if self.steps == 6:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].view(-1)[0] = torch.nan
            return result

    path = tmp_path / "state.pt"
    made = parts(lambda m: Last(m.parameters(), 0.1), model=Heads, train=batches, test=lambda: None)
    with pytest.raises(FloatingPointError, match="epoch 2: a parameter of the model is no longer finite"):
        made.run(6, checkpoint=path)
    assert torch.load(path, weights_only=True)["progress"]["epoch"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_test_loss_that_is_not_finite_stops(value: float) -> None:
    made = parts(model=Heads, train=batches, test=batches)
    made.test[0].x.fill_(value)
    with pytest.raises(FloatingPointError, match="epoch 1: the test loss is nan"):
        made.run(2)


def test_a_frozen_parameter_may_be_infinite() -> None:
    made = parts(model=Heads, train=batches, test=batches)
    made.model.bound = nn.Parameter(torch.tensor(float("inf")), requires_grad=False)
    made.optimizer.add_param_group({"params": [made.model.bound]})
    assert len(made.run(2)[0]) == 2


def torch_iterator(items: list[Any]) -> Any:
    return iter(torch.utils.data.DataLoader(items, batch_size=None, collate_fn=lambda item: item))


@pytest.mark.parametrize("make", [iter, lambda items: (item for item in items), enumerate, torch_iterator])
@pytest.mark.parametrize("name", ["train", "test"])
def test_single_pass_loaders_are_refused(name: str, make: Any) -> None:
    made = parts(model=Heads, train=batches, test=batches)
    setattr(made, name, make(batches()))
    with pytest.raises(TypeError, match=f"{name}_dataloader: a .* is exhausted after one epoch"):
        made.run(1)


def test_a_loader_that_is_its_own_iterator_and_starts_anew() -> None:
    class Anew:
        def __iter__(self) -> Any:
            self.left = batches()
            return self

        def __next__(self) -> Any:
            if not self.left:
                raise StopIteration
            return self.left.pop(0)

    seed(0)
    expected = parts(model=Heads, train=batches, test=batches).run(2)
    seed(0)
    assert parts(model=Heads, train=Anew, test=Anew).run(2) == expected


def test_a_loader_that_is_exhausted_later_is_named() -> None:
    class Once(list[Any]):
        def __iter__(self) -> Any:
            return iter([self.pop() for _ in range(len(self))])

    with pytest.raises(ValueError, match=r"train_dataloader: has no batch; every epoch needs at least one"):
        parts(model=Heads, train=lambda: Once(batches()), test=lambda: None).run(2)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy(kind: Any, tmp_path: Path) -> None:
    def make(kind: Any) -> Any:
        seed(0)
        whole = dataset()
        made = parts(train=lambda: data.WindowLoader(whole, range(16), kind(8), shuffle=True, seed=kind(3)))
        path = tmp_path / f"{kind.__name__}.pt"
        return made.run(kind(3), patience=kind(2), checkpoint=path, checkpoint_every=kind(2))

    assert make(kind) == make(int)


@pytest.mark.parametrize("value", [True, np.True_, 2.0, "2", None])
@pytest.mark.parametrize("name", ["num_epochs", "checkpoint_every", "batch_size", "patience"])
def test_values_that_are_not_integers(name: str, value: Any) -> None:
    if name == "patience" and value is None:
        return
    calls = {
        "num_epochs": lambda: parts().run(value),
        "batch_size": lambda: data.WindowLoader(dataset(), range(16), value),
    }
    call = calls.get(name, lambda: parts().run(1, **{name: value}))
    with pytest.raises(TypeError, match=f"{name}: expected an integer"):
        call()


def untouched(made: Parts, error: type[Exception], message: str, **options: Any) -> None:
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    steps: list[int] = []
    with pytest.raises(error, match=message):
        made.run(2, callback=lambda epoch, _: steps.append(epoch), **options)
    assert_equal(dict(made.model.state_dict()), before)
    assert not steps and not made.optimizer.state


def test_a_checkpoint_that_cannot_be_written_is_noticed_before_training(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    untouched(parts(), IsADirectoryError, "is a folder", checkpoint=tmp_path / "folder")
    (tmp_path / "file").touch()
    untouched(parts(), NotADirectoryError, "file is not a folder", checkpoint=tmp_path / "file" / "state.pt")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_noticed_before_training(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    untouched(parts(), PermissionError, "cannot be written to", checkpoint=tmp_path / "state.pt")


def test_the_file_of_a_checkpoint_is_not_touched_by_the_trial(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"precious")
    with pytest.raises(KeyboardInterrupt):
        parts(train=lambda: Interrupting()).run(1, checkpoint=path)
    assert path.read_bytes() == b"precious"
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


class Interrupting:
    def __iter__(self) -> Any:
        raise KeyboardInterrupt


def test_losses_are_fetched_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    original = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: fetched.append(self.numel()) or original(self))
    made = parts(model=Heads, train=batches, test=batches)
    made.run(1)
    fetched.clear()
    made.run(3)
    assert fetched == [7] * 3


def test_the_criterion_is_moved_to_the_device() -> None:
    class Moved(MultiTaskLoss):
        def _apply(self, *args: Any, **kwargs: Any) -> Any:
            moved.append(self)
            return super()._apply(*args, **kwargs)

    moved: list[Any] = []
    made = parts(criterion=Moved(signal_weight=[1.0, 2.0]))
    made.run(1, device="cpu")
    assert moved == [made.options["criterion"]]


@pytest.mark.hostile("labels")
@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize(
    ("loader", "hint"),
    [
        (3, "got int"),
        (batches, "got function; call it"),
        ({"a": 1}, "got dict"),
        (batches()[0], "got Batch; give a list of one batch"),
        (dataset(), "got WindowDataset; make a hiermt.data.WindowLoader"),
    ],
)
def test_loaders_without_batches_are_refused(name: str, loader: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=f"{name}_dataloader: expected an iterable of batches, {hint}"):
        parts(model=Heads, **{"train": batches, name: lambda: loader}).run(1)


def test_a_training_without_a_loader_is_refused() -> None:
    with pytest.raises(TypeError, match="train_dataloader: expected an iterable of batches, got NoneType"):
        parts(model=Heads, train=lambda: None).run(1)
