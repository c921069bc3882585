"""Damaged states are refused with a ValueError and change nothing."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fuzz.source import places
from hiermt import data
from hiermt.training import loop, resume
from hiermt.training.encoding import checksum
from support.resume_cases import Heads, Parts, assert_equal, batches, dataset, global_random, parts, seed


def make() -> Parts:
    return parts(
        model=lambda: Heads(dropout=0.2),
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
        train=lambda: data.WindowLoader(dataset(), range(16), 8, shuffle=True),
        test=batches,
        patience=3,
    )


def state_of(made: Parts) -> dict[str, Any]:
    """Everything that resuming may change."""
    return {
        "model": copy.deepcopy(made.model.state_dict()),
        "optimizer": copy.deepcopy(made.optimizer.state_dict()),
        "scheduler": copy.deepcopy(made.options["scheduler"].state_dict()),
        "loader": {**made.train.state_dict(), "batch_size": made.train.batch_size},
        "requires_grad": [parameter.requires_grad for parameter in made.model.parameters()],
        "random": global_random(),
    }


WAYS = 3


class Loaded(Exception):
    """Training would begin."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("good") / "state.pt"
    seed(0)
    made = make()
    made.run(3, checkpoint=path)
    return torch.load(path, weights_only=True)


def mutations(value: Any) -> Iterator[Any]:
    """Other values in the place of one."""
    yield from (None, "x", 3.5, -1, [], {}, True, (1, 2), torch.zeros(2, 3))
    if isinstance(value, Tensor):
        yield from (value.flatten()[: value.numel() // 2].clone(), value.unsqueeze(0), value.double(), value + 1)
        if value.is_floating_point():
            yield torch.full_like(value, float("nan"))
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, -value - 2, float("nan"), str(value), 2**70)
    elif isinstance(value, str):
        yield from (value + "x", "")
    elif isinstance(value, list | tuple):
        yield from (value[:-1], (*value, *value), type(value)([*value, None]))
    elif isinstance(value, dict):
        yield from ({**value, "unknown": 1}, {str(key) + "x": each for key, each in value.items()})


def replaced(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], Any]) -> Any:
    """A copy with the container at the end of `path` changed."""
    if len(path) == 1:
        return change(value, path[0])
    if isinstance(value, dict):
        return {**value, path[0]: replaced(value[path[0]], path[1:], change)}
    items = list(value)
    items[path[0]] = replaced(items[path[0]], path[1:], change)
    return type(value)(items)


def without(value: Any, key: Any) -> Any:
    if isinstance(value, dict):
        return {name: each for name, each in value.items() if name != key}
    return type(value)([each for i, each in enumerate(value) if i != key])


def with_value(new: Any) -> Callable[[Any, Any], Any]:
    def change(value: Any, key: Any) -> Any:
        if isinstance(value, dict):
            return {**value, key: new}
        items = list(value)
        items[key] = new
        return type(value)(items)

    return change


def damaged(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each branch and leaf removed, and in some of the ways that there are put in another's place."""
    rng = random.Random(0)
    for path in places(content):
        value: Any = content
        for key in path:
            value = value[key]
        yield f"{path} removed", replaced(content, path, without)
        others = [(i, new) for i, new in enumerate(mutations(value)) if not same(new, value)]
        for i, new in rng.sample(others, WAYS):
            yield f"{path} mutation {i}", replaced(content, path, with_value(new))


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and not isinstance(one, Tensor) and repr(one) == repr(other)


@pytest.mark.hostile("damaged-state")
@pytest.mark.parametrize("sealed", [False, True], ids=["damaged", "forged"])
def test_every_damaged_state_is_refused_and_changes_nothing(
    sealed: bool, good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a checksum that fits, a state may load; what does not is refused as cleanly."""

    def begins(*_: Any) -> Any:
        raise Loaded

    monkeypatch.setattr(loop, "_run_epoch", begins)
    path = tmp_path / "state.pt"
    made = make()
    before, faults, loaded, count = state_of(made), [], 0, 0
    for name, content in damaged(good):
        if sealed:
            if "checksum" in name:
                continue
            content["checksum"] = checksum({key: each for key, each in content.items() if key != "checksum"})
        count += 1
        torch.save(content, path)
        try:
            made.run(5, checkpoint=path, resume=True)
            ended = True  # a state that says that the training is over
        except Loaded:
            ended = True
        except ValueError as error:
            ended = False
            if not str(error).startswith(str(path)):
                faults.append(f"{name}: {error}")
        except Exception as error:
            ended = True
            faults.append(f"{name}: {type(error).__name__}: {error}")
        if ended:
            loaded += 1
            if not sealed:
                faults.append(f"{name}: was loaded")
            made = make()
            before = state_of(made)
            continue
        try:
            assert_equal(state_of(made), before)
        except AssertionError as error:
            faults.append(f"{name}: changed {error}")
            made = make()
            before = state_of(made)
    assert count > 500
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:20])
    assert loaded < count / 2


@pytest.mark.hostile("damaged-state")
def test_bytes_that_flip(good: dict[str, Any], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(good, buffer)
    content, rng = buffer.getvalue(), np.random.default_rng(0)
    path, made = tmp_path / "state.pt", make()
    path.write_bytes(content)
    expected = make().run(4, checkpoint=path, resume=True)
    before = state_of(made)
    for position in rng.integers(0, len(content), 60).tolist():
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            found = made.run(4, checkpoint=path, resume=True)
        except ValueError:
            assert_equal(state_of(made), before)
            continue
        assert found == expected  # a byte that means nothing, such as padding
        made = make()
        before = state_of(made)


def test_a_failure_while_it_is_put_back_is_taken_back(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(state: dict[str, Any]) -> None:
        torch.manual_seed(99)
        raise RuntimeError("no")

    path, made = tmp_path / "state.pt", make()
    torch.save(good, path)
    before = state_of(made)
    calls = iter([fails])
    restore = resume.set_random_state
    monkeypatch.setattr(resume, "set_random_state", lambda state: next(calls, restore)(state))
    with pytest.raises(ValueError, match=r"does not fit \(RuntimeError: no\); nothing was changed"):
        made.run(5, checkpoint=path, resume=True)
    assert_equal(state_of(made), before)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model",), None, "'model' is a NoneType in place of a dict"),
        (("model", "heads.weight"), torch.zeros(4, 5), r"heads.weight has shape \[4, 5\], expected \[4, 6\]"),
        (("model", "heads.weight"), torch.zeros(4, 6).double(), "heads.weight is torch.float64"),
        (("optimizer", "shapes"), [[1], [2]], r"its parameter 0 has shape \[1\]"),
        (("optimizer", "state_dict", "param_groups", 0), {"params": [0, 1]}, "group 0 of the optimizer has no lr"),
        (("progress", "epoch"), 7, "damaged"),
        (("held", "train_dataloader.generator", "value", "state"), torch.zeros(3), "damaged"),
    ],
)
def test_the_message_says_what_is_wrong(
    path: tuple[Any, ...], value: Any, message: str, good: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "state.pt"
    torch.save(replaced(good, path, with_value(value)), file)
    with pytest.raises(ValueError, match=message):
        make().run(5, checkpoint=file, resume=True)


def test_the_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    parts(model=Heads, train=batches, test=batches).run(1, checkpoint=path)
    other = parts(model=lambda: Heads(torch.float64), train=lambda: batches(torch.float64), test=lambda: None)
    with pytest.raises(ValueError, match="2 loaders, there are 1"):
        other.run(2, checkpoint=path, resume=True)
