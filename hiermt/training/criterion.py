"""The criterion of a training: our multi-task loss or any other callable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiermt._arguments import check_number
from hiermt.nn.inputs import takes
from hiermt.nn.loss import MultiTaskLoss
from hiermt.nn.parameters import runs

PARTS = ("signal_loss", "direction_loss")
_OWN_FORWARD = MultiTaskLoss.forward


class _Default(float):
    """A default value that differs by identity from the same number passed by a caller."""


ONE = _Default(1.0)


def make_criterion(criterion: Any, lambda_direction: float) -> Any:
    """Returns `criterion`, or a :class:`MultiTaskLoss` if it is ``None``.

    Raises:
        ValueError: `lambda_direction` is not finite, or contradicts the criterion's own.
        TypeError: `lambda_direction` is not a number.
    """
    if lambda_direction is not ONE:
        lambda_direction = check_number("lambda_direction", lambda_direction)
    if criterion is None:
        return MultiTaskLoss(lambda_direction)
    own = getattr(criterion, "lambda_direction", lambda_direction)
    if lambda_direction is not ONE and lambda_direction != own:
        raise ValueError(
            f"lambda_direction: {lambda_direction} contradicts the criterion's {own}; "
            "set it in one place, or pass criterion=None"
        )
    return criterion


def is_own(criterion: Any) -> bool:
    """Whether a call runs the unmodified :meth:`MultiTaskLoss.forward`."""
    return isinstance(criterion, MultiTaskLoss) and runs(criterion, _OWN_FORWARD)


def loss_terms(
    criterion: Any, logits: tuple[Tensor, Tensor], batch: Any, row_mask: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Total, signal and direction loss of a batch; NaN for parts that another criterion does not return.

    `row_mask` are the rows that count, ``None`` for all; another criterion gets it as a keyword, if there is one.

    Raises:
        ValueError: a batch has no labels, or the loss is not one number.
        TypeError: the criterion returns something else, or there is a mask and it takes none.
    """
    if getattr(batch, "signal_labels", None) is None or getattr(batch, "direction_labels", None) is None:
        raise ValueError("a batch has no signal_labels and direction_labels; training and testing need both")
    signal_targets = batch.signal_labels.reshape(-1)
    direction_targets = batch.direction_labels.reshape(-1)
    mask = signal_targets == 1
    if is_own(criterion):
        return tuple(criterion.terms(*logits, signal_targets, direction_targets, mask, row_mask))
    # Other criteria expect the logits of a PyG batch, [N, 2].
    flat = [part.reshape(-1, part.size(-1)) for part in logits]
    rows = {} if row_mask is None else {"row_mask": row_mask.reshape(-1)}
    if rows and not takes(criterion, "row_mask"):
        raise TypeError(
            "criterion: the batches have rows that do not count (present, target_mask), which it does not take; give "
            "it an argument row_mask, bool [N], the rows that count"
        )
    loss, parts = _foreign(criterion(*flat, signal_targets, direction_targets, signal_mask=mask, **rows))
    return loss, *(
        torch.as_tensor(parts.get(name, float("nan")), dtype=torch.float64, device=loss.device) for name in PARTS
    )


def _foreign(result: Any) -> tuple[Tensor, Mapping[str, Any]]:
    loss, parts = result if isinstance(result, tuple | list) and len(result) == 2 else (result, {})
    if not isinstance(loss, Tensor) or not isinstance(parts, Mapping | None):
        found = f"{type(loss).__name__} and {type(parts).__name__}" if loss is not result else type(result).__name__
        raise TypeError(f"criterion: expected a loss, or a loss and a dict of its parts, as tensors; got {found}")
    if loss.numel() != 1:
        raise ValueError(f"criterion: expected a loss of one number, got shape {list(loss.shape)}; take its mean()")
    return loss.reshape(()), parts or {}
