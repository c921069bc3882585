"""Progress display of a training."""

from __future__ import annotations

from typing import Any

LOG_EVERY = 10
# As the published loop abbreviates it.
_SHORT = {"direction_loss": "Dir"}


class Progress:
    """A bar over the epochs, if tqdm is installed, and a line every tenth epoch."""

    def __init__(self, num_epochs: int, enabled: bool) -> None:
        self.enabled = enabled
        self.bar: Any = None
        if enabled:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=num_epochs, desc="training", unit="epoch", leave=False, disable=None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def note(self, line: str) -> None:
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.write(line)
        else:
            print(line)

    def advance(self, epoch: int, metrics: dict[str, float]) -> None:
        if self.bar is not None:
            losses = {part: metrics.get(f"{part}_total_loss") for part in ("train", "test")}
            self.bar.set_postfix({part: f"{loss:.4f}" for part, loss in losses.items() if loss is not None}, False)
            self.bar.update()
        if epoch % LOG_EVERY:
            return
        line = f"Epoch {epoch:3d}: Train Loss={metrics['train_total_loss']:.4f}"
        parts = [name.removeprefix("train_") for name in metrics if name.startswith("train_")]
        shown = [f"{_label(name)}={metrics[f'train_{name}']:.4f}" for name in parts if name != "total_loss"]
        if shown:
            line += f" ({', '.join(shown)})"
        if "test_total_loss" in metrics:
            line += f" | Test Loss={metrics['test_total_loss']:.4f}"
        self.note(line)


def _label(name: str) -> str:
    return _SHORT.get(name) or name.removesuffix("_loss").capitalize()
