"""The losses of a training, as TensorBoard reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _summary_writer(folder: str | Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            "tensorboard: writing for TensorBoard needs a package that is not installed; run: pip install tensorboard"
        ) from None
    return SummaryWriter(str(folder))


def _write_summary(writer: Any, epoch: int, metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        part, _, loss = name.partition("_")
        writer.add_scalar(f"{loss}/{part}", value, epoch)
