"""Losses of the finished epochs of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """Losses of the finished epochs, and whether a callback ended the training.

    Attributes:
        epoch (int): number of finished epochs.
        train_losses, test_losses (list of float): the total loss of each epoch; no test losses without a test loader.
        history (dict): every loss of the training passes by name, one float per epoch.
        stopped (bool): a callback ended the training.
    """

    epoch: int = 0
    train_losses: list[float] = field(default_factory=list)
    test_losses: list[float] = field(default_factory=list)
    history: dict[str, list[float]] = field(default_factory=dict)
    stopped: bool = False

    @classmethod
    def of(cls, parts: Sequence[str]) -> History:
        """An empty history of these losses, the total first."""
        return cls(history={name: [] for name in (*parts[1:], parts[0])})

    def add(self, epoch: int, metrics: dict[str, float]) -> None:
        """Appends the average losses of an epoch."""
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
    def check(state: dict[str, Any], tested: bool, parts: Sequence[str]) -> None:
        """Raises ``ValueError`` unless `state` is a valid result of :meth:`state_dict`."""
        epoch = state.get("epoch")
        if type(epoch) is not int or epoch < 1:
            raise ValueError(f"damaged: epoch is {epoch!r}")
        history = state.get("history")
        if not isinstance(history, dict) or set(history) != set(parts) or type(state.get("stopped")) is not bool:
            raise ValueError("damaged: the history of losses is incomplete")
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
                raise ValueError(f"damaged: the number of losses is not the epoch, {epoch}")
