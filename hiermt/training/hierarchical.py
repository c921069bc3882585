"""The training of the two-headed model, with the signature of the published loop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hiermt.training.criterion import ONE
from hiermt.training.loop import Callback, train
from hiermt.training.tasks import TwoHeaded


def train_hierarchical(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module | None,
    train_dataloader: Iterable[Any],
    test_dataloader: Iterable[Any] | None,
    num_epochs: int = 100,
    lambda_direction: float = ONE,
    device: torch.device | str | None = None,
    *,
    scheduler: Any = None,
    callback: Callback | None = None,
    patience: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    tensorboard: str | Path | None = None,
    capture: bool = True,
    share_days: bool | None = None,
) -> tuple[list[float], list[float], dict[str, list[float]]]:
    r"""Trains a model with two heads on the multi-task loss: :func:`hiermt.train` with :class:`hiermt.tasks.TwoHeaded`.

    Args:
        model (Module): returns ``(signal_logits, direction_logits)``.
        criterion (Module, optional): a :class:`MultiTaskLoss`, or a callable with the same arguments: logits
            ``[N, 2]``, targets ``[N]``, ``signal_mask``, and ``row_mask`` where rows of the batches do not count. It
            returns the loss, or the loss and a dict of its parts; missing parts are NaN in the history. ``None`` for
            ``MultiTaskLoss(lambda_direction)``. A module is moved to the model's device.
        train_dataloader, test_dataloader (iterable): batches as for :func:`hiermt.train`, with ``signal_labels`` and
            ``direction_labels``; the test loader may be ``None``.
        lambda_direction (float): weight of the direction loss if `criterion` is ``None``. Next to a criterion it must
            not contradict the criterion's own weight. (default: ``1.0``)
        optimizer, num_epochs, device: as for :func:`hiermt.train`, and so is everything that follows.

    Returns:
        Training loss and test loss of each epoch, and ``{"signal_loss", "direction_loss", "total_loss"}``, each a
        list with one float per epoch.

    Raises:
        ValueError: as :func:`hiermt.train`; or `lambda_direction` contradicts the criterion.
        TypeError: as :func:`hiermt.train`; `criterion` does not return a loss; or `lambda_direction` is not a number
            (pass a learned weight as ``criterion=MultiTaskLoss(lambda_direction)`` and give it to the optimiser).
        FloatingPointError, ImportError, OSError: as :func:`hiermt.train`.
    """
    history = train(
        model,
        optimizer,
        TwoHeaded(criterion, lambda_direction),
        train_dataloader,
        test_dataloader,
        num_epochs,
        device,
        scheduler=scheduler,
        callback=callback,
        patience=patience,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard,
        capture=capture,
        share_days=share_days,
    )
    return history.train_losses, history.test_losses, history.history
