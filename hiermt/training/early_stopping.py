"""Early stopping."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hiermt import _warnings


class EarlyStopping:
    """Stops when the test loss has not fallen for `patience` epochs, and keeps the best weights."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.loss = float("inf")
        self.waited = 0
        self.state: dict[str, Tensor] | None = None

    def stopped(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def update(self, loss: float, model: nn.Module) -> None:
        if self.patience is None:
            return
        if loss == 0 and self.state is None:
            # The loss of no rows, which no later one would be below.
            _warnings.warn(
                "patience: the test loss is 0, as if no row of test_dataloader counted (target_mask, present); such an "
                "epoch is not taken as the best. Give a test_dataloader with labels, or patience=None",
                UserWarning,
                Path(__file__).parent,
            )
            return
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            self.state = copy.deepcopy(model.state_dict())
        else:
            self.waited += 1

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "waited": self.waited, "state": None if self.state is None else dict(self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss, self.waited, self.state = state["loss"], state["waited"], state["state"]

    @staticmethod
    def check(state: Any, model: nn.Module) -> None:
        """Raises ``ValueError`` unless `state` is a valid result of :meth:`state_dict` for `model`."""
        if not isinstance(state, dict) or type(state.get("loss")) is not float or type(state.get("waited")) is not int:
            raise ValueError("damaged: the best test loss is missing")
        best, own = state.get("state", ()), model.state_dict()
        if best is None:
            return
        fits = isinstance(best, dict) and set(best) == set(own)
        for key, tensor in own.items() if fits else ():
            fits &= not isinstance(tensor, Tensor) or (
                isinstance(best[key], Tensor) and (best[key].shape, best[key].dtype) == (tensor.shape, tensor.dtype)
            )
        if not fits:
            raise ValueError("damaged: its best weights do not fit the model")

    def restore(self, model: nn.Module) -> None:
        if self.state is not None:
            model.load_state_dict(self.state)
