"""Losses of the epochs of a training: kept for the report, and shown while it runs."""

from __future__ import annotations

import importlib.util
from typing import Any

from hiermt.cli.output import is_terminal, log

# Names of the training loop, which knows no validation, and of what is shown and written.
_SPANS = {"train": "train", "test": "validation"}


class Epochs:
    """A callback that keeps the losses of each epoch. It shows them in a bar on a terminal, else as a line each.

    Its state goes into a checkpoint, so that a resumed training knows the losses of the epochs before.

    Args:
        most (int): number of epochs at most.
        show (bool): show the losses. (default: ``True``)
        every (int): epochs from one line to the next. (default: ``1``)

    Attributes:
        losses (dict): ``train_total_loss``, ``validation_total_loss`` and the like, one value per epoch.
        count (int): number of epochs, including those before a checkpoint.
    """

    def __init__(self, most: int, show: bool = True, every: int = 1) -> None:
        self.most, self.show, self.every = most, show, every
        self.losses: dict[str, list[float]] = {}
        self.count = 0
        self._bar: Any = None

    def __enter__(self) -> Epochs:
        if self.show and is_terminal() and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(total=self.most, desc="training", unit="epoch", leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, epoch: int, metrics: dict[str, float]) -> None:
        """Takes the losses of an epoch, as the training loop gives them."""
        self.count = epoch
        parts = {ours: span for span, ours in _SPANS.items() if f"{span}_total_loss" in metrics}
        for ours, span in parts.items():
            for name, loss in metrics.items():
                if name.startswith(f"{span}_"):
                    self.losses.setdefault(f"{ours}_{name.removeprefix(f'{span}_')}", []).append(loss)
        if self._bar is not None:
            self._bar.set_postfix({ours: f"{metrics[f'{span}_total_loss']:.4f}" for ours, span in parts.items()}, False)
            self._bar.update(epoch - self._bar.n)
        elif self.show and epoch % self.every == 0:
            texts = [f"{ours} {_shown(metrics, span)}" for ours, span in parts.items()]
            log.info("epoch %*d/%d  %s", len(str(self.most)), epoch, self.most, "  ".join(texts))

    def state_dict(self) -> dict[str, Any]:
        """The losses so far."""
        return {"count": self.count, "losses": {name: list(values) for name, values in self.losses.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the losses of a checkpoint."""
        self.count = state["count"]
        self.losses = {name: list(values) for name, values in state["losses"].items()}


def _shown(metrics: dict[str, float], span: str) -> str:
    """The loss of a span, and those of its parts in brackets."""
    losses = {name.removeprefix(f"{span}_"): loss for name, loss in metrics.items() if name.startswith(f"{span}_")}
    total = f"{losses.pop('total_loss'):.4f}"
    parts = ", ".join(f"{name.removesuffix('_loss')} {loss:.4f}" for name, loss in losses.items())
    return f"{total} ({parts})" if parts else total
