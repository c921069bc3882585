"""Labels: whether a stock moves, and in which direction."""

from __future__ import annotations

import torch
from torch import Tensor

from hiermt._arguments import check_integer
from hiermt.data._errors import DataError

THRESHOLD = 0.0055
"""Absolute return above which a day is a signal: 0.55 %."""

CLASSES = ("Down", "Neutral", "Up")


def next_returns(close: Tensor, horizon: int = 1) -> Tensor:
    """Simple return from each day to `horizon` days later: ``close[t + horizon] / close[t] - 1``.

    Args:
        close (Tensor): closing prices.
        horizon (int): trading days ahead. (default: ``1``)

    Shapes:
        - **close:** ``[S, D]``
        - **returns:** ``[S, D - horizon]`` float64; the last days have no return

    Raises:
        TypeError: `horizon` is not an integer.
        ValueError: `horizon` is below 1.
        DataError: there are `horizon` days or fewer.
    """
    check_integer("horizon", horizon, 1)
    horizon = int(horizon)
    if close.dim() != 2 or close.size(1) <= horizon:
        raise DataError(f"close: expected [stocks, days] with more than {horizon} days, got {list(close.shape)}")
    close = close.double()
    return close[:, horizon:] / close[:, :-horizon] - 1


def hierarchical_labels(returns: Tensor, threshold: float = THRESHOLD) -> tuple[Tensor, Tensor]:
    """Signal (1) or noise (0), and up (1) or not (0).

    Args:
        returns (Tensor): next-day returns.
        threshold (float): a signal is ``|return| > threshold``, up is ``return > threshold``. (default: ``0.0055``)

    Shapes:
        - **returns:** any
        - **signal_labels**, **direction_labels:** the same, int64

    Raises:
        ValueError: `threshold` is negative or NaN.
        DataError: a return is NaN or infinite.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold: expected 0 or more, got {threshold}")
    if not bool(torch.isfinite(returns).all()):
        raise DataError("returns: NaN or infinity among them; labels need a price on both days")
    return (returns.abs() > threshold).long(), (returns > threshold).long()


def three_classes(signal_labels: Tensor, direction_labels: Tensor) -> Tensor:
    """0 Down, 1 Neutral, 2 Up, the classes of the hierarchical decision.

    Args:
        signal_labels (Tensor): 1 where a stock moved.
        direction_labels (Tensor): 1 for up; of the same shape.
    """
    return torch.where(signal_labels == 1, 2 * direction_labels, 1)
