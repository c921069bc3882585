"""How far a training has come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

NAMES = ("total_loss", "signal_loss", "direction_loss")


@dataclass
class Course:
    """Losses of the epochs that are over, and whether a callback ended the training."""

    epoch: int = 0
    train_losses: list[float] = field(default_factory=list)
    test_losses: list[float] = field(default_factory=list)
    history: dict[str, list[float]] = field(
        default_factory=lambda: {"signal_loss": [], "direction_loss": [], "total_loss": []}
    )
    stopped: bool = False

    def add(self, epoch: int, metrics: dict[str, float]) -> None:
        """Takes the average losses of an epoch."""
        self.epoch = epoch
        self.train_losses.append(metrics["train_total_loss"])
        for name, values in self.history.items():
            values.append(metrics[f"train_{name}"])
        if "test_total_loss" in metrics:
            self.test_losses.append(metrics["test_total_loss"])

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update({name: state[name] for name in vars(self)})

    @staticmethod
    def check(state: dict[str, Any], tested: bool) -> None:
        """Raises ``ValueError`` unless `state` is one of :meth:`state_dict`."""
        epoch = state.get("epoch")
        if type(epoch) is not int or epoch < 1:
            raise ValueError(f"damaged: epoch is {epoch!r}")
        history = state.get("history")
        if not isinstance(history, dict) or set(history) != set(NAMES) or type(state.get("stopped")) is not bool:
            raise ValueError("damaged: the history of the losses is not complete")
        for values, count in (
            (state.get("train_losses"), epoch),
            (state.get("test_losses"), epoch if tested else 0),
            *((values, epoch) for values in history.values()),
        ):
            if (
                not isinstance(values, list)
                or len(values) != count
                or any(type(value) is not float for value in values)
            ):
                raise ValueError(f"damaged: it holds the losses of other epochs than {epoch}")


def finite_weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The trained parameters that are finite when the training begins, and have to stay so."""
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ready = [each for each in every if not nn.parameter.is_lazy(each) and each.is_floating_point()]
    return [each for each in ready if bool(each.detach().isfinite().all())]


def largest(weights: list[Tensor], device: torch.device | str) -> Tensor:
    """The largest absolute value, float64 on the device, as a vector of one; NaN if there is one."""
    if not weights:
        return torch.zeros(1, dtype=torch.float64, device=device)
    norm = nn.utils.get_total_norm([weight.detach() for weight in weights], norm_type=math.inf)
    return norm.to(device, torch.float64).reshape(1)


def failure(epoch: int, metrics: dict[str, float], largest_weight: float) -> str | None:
    """Why the training cannot go on after an epoch: a total loss or a weight that is not finite."""
    reason = None if math.isfinite(largest_weight) else "a parameter of the model is no longer finite"
    for part in ("train", "test"):
        loss = metrics.get(f"{part}_total_loss", 0.0)
        if not math.isfinite(loss):
            reason = f"the {part} loss is {loss}"
            break
    return reason and (
        f"epoch {epoch}: {reason}; the training stops, and a checkpoint keeps the state of an epoch before. Lower the "
        "learning rate, or look for NaN and Inf in the data"
    )
