"""Early stopping, with the best weights kept."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class EarlyStopping:
    """Watches the test loss and keeps the weights that had the lowest."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.loss = float("inf")
        self.waited = 0
        self.state: dict[str, Tensor] | None = None

    def stopped(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def look(self, loss: float, model: nn.Module) -> None:
        if self.patience is None:
            return
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            self.state = copy.deepcopy(model.state_dict())
        else:
            self.waited += 1

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "waited": self.waited, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss, self.waited, self.state = state["loss"], state["waited"], state["state"]

    def restore(self, model: nn.Module) -> None:
        if self.state is not None:
            model.load_state_dict(self.state)
