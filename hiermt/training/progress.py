"""Progress display of a training."""

from __future__ import annotations

from typing import Any

LOG_EVERY = 10


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
            self.bar.update()
        if epoch % LOG_EVERY:
            return
        line = (
            f"Epoch {epoch:3d}: Train Loss={metrics['train_total_loss']:.4f} "
            f"(Signal={metrics['train_signal_loss']:.4f}, Dir={metrics['train_direction_loss']:.4f})"
        )
        if "test_total_loss" in metrics:
            line += f" | Test Loss={metrics['test_total_loss']:.4f}"
        self.note(line)
