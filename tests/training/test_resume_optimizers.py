"""Every optimiser of torch.optim is bitwise equal after a resume, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from support.resume_cases import Heads, Parts, assert_goes_on, batches, parts

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Adafactor": [{}, {"foreach": True}],
    "Adadelta": [{}, {"foreach": True}],
    "Adagrad": [{"lr": 0.05}, {"lr": 0.05, "fused": True}],
    "Adam": [
        {"lr": 0.01},
        {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1},
        {"lr": 0.01, "fused": True},
        {"lr": 0.01, "foreach": True},
        {"lr": torch.tensor(0.01), "foreach": False},
        {"lr": np.float64(0.01), "betas": (np.float64(0.5), 0.9)},
    ],
    "Adamax": [{}],
    "AdamW": [{"lr": 0.01}, {"lr": 0.01, "amsgrad": True, "maximize": False}],
    "ASGD": [{"t0": 2.0}],
    "NAdam": [{}, {"decoupled_weight_decay": True, "weight_decay": 0.1}],
    "RAdam": [{}],
    "RMSprop": [{}, {"momentum": 0.9, "centered": True}],
    "Rprop": [{}],
    "SGD": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"lr": 0.1, "momentum": 0.9, "fused": True}],
}
CASES = [(name, options) for name, every in OPTIONS.items() for options in every]
# These want other parameters than a model of ours has, or a closure.
OTHERS = {"LBFGS", "Muon", "Optimizer", "SparseAdam"}


def test_no_optimizer_is_left_out() -> None:
    names = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    assert names == set(OPTIONS) | (OTHERS & names)


def making(name: str, options: dict[str, Any]) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        fresh = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
        return getattr(torch.optim, name)(model.parameters(), **fresh)

    return make


@pytest.mark.hostile("resume")
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_resumes(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    assert_goes_on(lambda: parts(making(name, options)), tmp_path)


@pytest.mark.parametrize("name", [*sorted(OPTIONS), "Muon"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_resumes_in_another_dtype(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    # NAdam keeps a product in float32 beside the parameters, whose dtype torch's own loading gives it.
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    options = {"lr": torch.tensor(1e-2), "foreach": False} if name == "Adam" else {"lr": 1e-2}
    assert_goes_on(
        lambda: parts(
            making(name, options),
            model=lambda: Heads(dtype),
            train=lambda: batches(dtype),
            test=lambda: batches(dtype),
        ),
        tmp_path,
    )


def test_resumes_with_groups_and_frozen_parameters(tmp_path: Path) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        named = dict(model.named_parameters())
        named["signal_head.bias"].requires_grad_(False)
        heads = [named[name] for name in named if "head" in name]
        others = [named[name] for name in named if "head" not in name]
        return torch.optim.AdamW([{"params": heads, "lr": 0.05}, {"params": others, "weight_decay": 0.3}], lr=0.01)

    assert_goes_on(lambda: parts(make), tmp_path, cuts=(1, 2, 3))


def test_resumes_after_a_callback_that_freezes_and_changes_groups(tmp_path: Path) -> None:
    def callback(made: Parts) -> Any:
        def change(epoch: int, metrics: dict[str, float]) -> None:
            group = made.optimizer.param_groups[0]
            group["lr"] /= epoch + 1
            group["betas"] = (0.9 / epoch, 0.99)
            if epoch == 2:
                next(made.model.parameters()).requires_grad_(False)
                made.optimizer.state.pop(next(made.model.parameters()))

        return change

    again = assert_goes_on(lambda: parts(callback=callback), tmp_path, cuts=(1, 2, 3))
    assert not next(again.model.parameters()).requires_grad


def test_an_optimizer_of_the_users_own(tmp_path: Path) -> None:
    class Signs(torch.optim.Optimizer):
        """Keeps tensors of other shapes than the parameters, and a number beside its groups."""

        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr})
            self.calls, self.rng = 0, np.random.default_rng(1)

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            self.calls += 1
            factor = self.rng.random() / self.calls
            for group in self.param_groups:
                for parameter in group["params"]:
                    state = self.state[parameter]
                    state["mean"] = state.get("mean", torch.zeros(7)) + parameter.grad.mean()
                    state["steps"] = state.get("steps", 0) + 1
                    parameter -= factor * group["lr"] * parameter.grad.sign() * state["mean"].sum() / state["steps"]

    assert_goes_on(lambda: parts(lambda model: Signs(model.parameters(), 1e-2)), tmp_path)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_optimizer_that_needs_a_closure_is_refused(checkpoint: bool, tmp_path: Path) -> None:
    made = parts(lambda model: torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="optimizer: LBFGS needs a closure"):
        made.run(1, checkpoint=tmp_path / "state.pt" if checkpoint else None)


def test_a_state_that_cannot_be_stored_is_refused_before_training(tmp_path: Path) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.param_groups[0]["owner"] = object()
        return optimizer

    made = parts(make)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"checkpoint: optimizer\.param_groups\[0\]\.owner: a builtins\.object"):
        made.run(1, checkpoint=tmp_path / "state.pt")
    assert all(torch.equal(made.model.state_dict()[name], tensor) for name, tensor in before.items())
    assert not list(tmp_path.iterdir())
