"""Learning rate schedulers, stepped once per epoch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import lr_scheduler


def check_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer, num_epochs: int) -> None:
    """Rejects schedulers that cannot be stepped once per epoch.

    Raises:
        TypeError: it has no ``step``, for example a list of schedulers.
        ValueError: it belongs to another optimiser, or has fewer steps than epochs.
    """
    if not callable(getattr(scheduler, "step", None)) or isinstance(scheduler, torch.optim.Optimizer):
        raise TypeError(
            f"scheduler: expected one of torch.optim.lr_scheduler, got {type(scheduler).__name__}; join several with "
            "SequentialLR or ChainedScheduler"
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("scheduler: was made for another optimizer than the one given; make it for this one")
    if isinstance(scheduler, lr_scheduler.OneCycleLR) and scheduler.total_steps < num_epochs:
        raise ValueError(
            f"scheduler: a OneCycleLR of {scheduler.total_steps} steps ends before num_epochs={num_epochs}; it is "
            "stepped once per epoch, so give it total_steps=num_epochs"
        )


def step_scheduler(scheduler: Any, loss: float) -> None:
    """Steps a scheduler; passes the loss if ``step`` requires one, as in ``ReduceLROnPlateau``."""
    parameters = list(inspect.signature(scheduler.step).parameters.values())
    if parameters and parameters[0].default is inspect.Parameter.empty and parameters[0].kind <= 1:
        scheduler.step(loss)
    else:
        scheduler.step()
