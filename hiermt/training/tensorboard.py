"""Writes the losses of a training for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def summary_writer(folder: str | Path) -> Any:
    """Opens a log in `folder`.

    Raises:
        ImportError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            "tensorboard: writing for TensorBoard needs a package that is not installed; run: pip install tensorboard"
        ) from None
    return SummaryWriter(str(folder))


def write_summary(writer: Any, epoch: int, metrics: dict[str, float]) -> None:
    """Writes ``total_loss/train`` and the like of an epoch."""
    for name, value in metrics.items():
        part, _, loss = name.partition("_")
        writer.add_scalar(f"{loss}/{part}", value, epoch)
