"""Schedulers and callbacks: a resumed training has the learning rates of an uninterrupted one."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from support.resume_cases import Parts, assert_goes_on, batches, parts, seed


class Warmup:
    """A rule with a state of its own: numbers, a list and generators."""

    def __init__(self) -> None:
        self.calls, self.seen = 0, [1.0]
        self.dice, self.rng = random.Random(3), np.random.default_rng(4)

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        self.seen.append(self.dice.random() + self.rng.random())
        return sum(self.seen) / (self.calls + 3)

    def rate(self, epoch: int) -> float:
        return self(epoch)


def counting() -> Callable[[int], float]:
    calls, count = [0], 0

    def rule(epoch: int) -> float:
        nonlocal count
        count += 1
        calls.append(epoch)
        return 1 / (len(calls) + count)

    return rule


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda epoch: 1 / (epoch + 1)),
    "LambdaLR object": lambda o: lrs.LambdaLR(o, Warmup()),
    "LambdaLR method": lambda o: lrs.LambdaLR(o, Warmup().rate),
    "LambdaLR partial": lambda o: lrs.LambdaLR(o, functools.partial(Warmup.rate, Warmup())),
    "LambdaLR closure": lambda o: lrs.LambdaLR(o, counting()),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, Warmup()),
    "StepLR": lambda o: lrs.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [1, 3], 0.5),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.3, total_iters=3),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.7),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 4, 2.0),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 3),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 2, 2),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 1e-3, 1e-2, 2, cycle_momentum=False),
    "CyclicLR scale": lambda o: lrs.CyclicLR(o, 1e-3, 1e-2, 2, cycle_momentum=False, scale_fn=Warmup()),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.05, total_steps=5),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, factor=0.3, patience=0, threshold=0.2),
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.2, total_iters=2), lrs.LambdaLR(o, Warmup()), lrs.ExponentialLR(o, 0.5)], [2, 3]
    ),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler([lrs.ExponentialLR(o, 0.9), lrs.LambdaLR(o, counting())]),
    "averaged": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, 3),
}


def test_no_scheduler_is_left_out() -> None:
    assert {name.split()[0] for name in SCHEDULERS} >= set(lrs.__all__) - {"LRScheduler"}


@pytest.mark.hostile("resume")
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_resumes(name: str, tensor: bool, tmp_path: Path) -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        rate = torch.tensor(0.01) if tensor else 0.01
        return torch.optim.Adam(model.parameters(), lr=rate, foreach=False)

    def make() -> Parts:
        made = parts(optimizer, SCHEDULERS[name], train=batches, test=batches)
        made.options["callback"] = lambda *_: rates.append(float(made.optimizer.param_groups[0]["lr"]))
        return made

    rates: list[float] = []
    assert_goes_on(make, tmp_path, epochs=5, cuts=(1, 3))
    assert rates[:5] == rates[5:] and len(set(rates)) > 1


def test_plateau_watches_the_test_loss_or_that_of_the_training(tmp_path: Path) -> None:
    seen: list[float] = []

    class Watching(lrs.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:
            seen.append(metrics)
            super().step(metrics)

    for test in (batches, lambda: None):
        made = parts(scheduler=Watching, train=batches, test=test)
        train_losses, test_losses, _ = made.run(3)
        assert seen == (test_losses or train_losses)
        seen.clear()
        made = parts(scheduler=Watching, train=batches, test=test)
        assert_goes_on(lambda test=test: parts(scheduler=Watching, train=batches, test=test), tmp_path)
        seen.clear()
        (tmp_path / "state.pt").unlink()


def test_a_scheduler_that_is_not_of_torch(tmp_path: Path) -> None:
    class Own:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self._of, self.epochs = optimizer, 0

        def step(self) -> None:
            self.epochs += 1
            self._of.param_groups[0]["lr"] = 0.1 / self.epochs

        def state_dict(self) -> dict[str, Any]:
            return {"epochs": self.epochs}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.epochs = state["epochs"]

    assert_goes_on(lambda: parts(scheduler=Own), tmp_path)


def test_schedulers_that_cannot_step_per_epoch_are_refused() -> None:
    made = parts()
    for bad in ([lrs.StepLR(made.optimizer, 1)], 3, made.optimizer):
        with pytest.raises(TypeError, match="scheduler: expected one of torch"):
            made.run(1, scheduler=bad)
    with pytest.raises(ValueError, match="scheduler: was made for another optimizer"):
        made.run(1, scheduler=lrs.StepLR(parts().optimizer, 1))
    with pytest.raises(ValueError, match="scheduler: a OneCycleLR of 3 steps ends before num_epochs=4"):
        made.run(4, scheduler=lrs.OneCycleLR(made.optimizer, 0.1, total_steps=3))


def test_states_with_and_without_a_scheduler_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    parts(scheduler=SCHEDULERS["StepLR"]).run(1, checkpoint=path)
    for scheduler in (None, SCHEDULERS["ExponentialLR"]):
        with pytest.raises(ValueError, match=r"was written with scheduler of type torch.*StepLR"):
            parts(scheduler=scheduler).run(2, checkpoint=path, resume=True)


def test_a_callback_that_changes_the_learning_rate(tmp_path: Path) -> None:
    def callback(made: Parts) -> Any:
        def change(epoch: int, metrics: dict[str, float]) -> None:
            seen.append(made.optimizer.param_groups[0]["lr"])
            made.optimizer.param_groups[0]["lr"] = 1 / (epoch + 1)

        return change

    seen: list[float] = []
    assert_goes_on(lambda: parts(lambda m: torch.optim.SGD(m.parameters(), 1.0), callback=callback), tmp_path)
    assert seen[:4] == [1, 1 / 2, 1 / 3, 1 / 4] == seen[4:]


def test_a_scheduler_that_a_callback_steps(tmp_path: Path) -> None:
    """Its own state is the callback's: one that has a state_dict is stored."""

    class Stepping:
        def __init__(self, made: Parts) -> None:
            self.scheduler = lrs.CosineAnnealingLR(made.optimizer, 4)

        def __call__(self, epoch: int, metrics: dict[str, float]) -> None:
            self.scheduler.step()

        def state_dict(self) -> dict[str, Any]:
            return self.scheduler.state_dict()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.scheduler.load_state_dict(state)

    assert_goes_on(lambda: parts(callback=Stepping), tmp_path, cuts=(1, 3))


@pytest.mark.parametrize("kind", [True, np.True_])
def test_a_callback_ends_the_training(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    losses = parts().run(9, callback=lambda epoch, _: kind if epoch == 2 else epoch, checkpoint=path)
    assert len(losses[0]) == 2
    again = parts()
    assert again.run(9, checkpoint=path, resume=True) == losses


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_a_callback_that_raises_the_epoch_before_remains(error: type[BaseException], tmp_path: Path) -> None:
    def make(raising: bool) -> Parts:
        seed(0)
        made = parts()

        def callback(epoch: int, metrics: dict[str, float]) -> None:
            made.optimizer.param_groups[0]["lr"] /= 2
            if raising and epoch == 3:
                raise error

        made.options["callback"] = callback
        return made

    path = tmp_path / "state.pt"
    expected = make(False).run(4)
    with pytest.raises(error):
        make(True).run(4, checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    assert make(False).run(4, checkpoint=path, resume=True) == expected


def test_ctrl_c_within_an_epoch_leaves_a_state_to_go_on_from(tmp_path: Path) -> None:
    class Interrupted(list[Any]):
        passes, armed = 0, True

        def __iter__(self) -> Any:
            self.passes += 1
            for i, batch in enumerate(super().__iter__()):
                if self.armed and self.passes == 3 and i == 1:
                    raise KeyboardInterrupt
                yield batch

    path = tmp_path / "state.pt"
    seed(0)
    expected = parts(train=batches).run(4)
    seed(0)
    with pytest.raises(KeyboardInterrupt):
        parts(train=lambda: Interrupted(batches())).run(4, checkpoint=path)
    Interrupted.armed = False
    assert parts(train=lambda: Interrupted(batches())).run(4, checkpoint=path, resume=True) == expected
