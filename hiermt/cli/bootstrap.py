"""Intervals by block bootstrap over days: days are drawn in blocks, so that neighbours stay together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DRAWS, LEVEL, SEED = 500, 0.95, 0


def block_length(days: int, horizon: int) -> int:
    """Days of a block: the cube root of their number, and at least twice the horizon, whose returns overlap."""
    return max(1, min(days, max(math.ceil(math.pow(days, 1 / 3)), 2 * horizon)))


def day_weights(days: int, horizon: int = 1, draws: int = DRAWS) -> Floats:
    """How often each day is in each draw: blocks of days, round the end (circular block bootstrap).

    Shapes:
        - **returns:** ``[draws, days]``; each row adds up to `days`

    Source: Politis and Romano, A circular block-resampling procedure for stationary data, 1992.
    """
    if not days:
        return np.zeros((draws, 0))
    length = block_length(days, horizon)
    random = np.random.default_rng(SEED)
    starts = random.integers(0, days, (draws, math.ceil(days / length)))
    drawn = ((starts[..., None] + np.arange(length)) % days).reshape(draws, -1)[:, :days]
    rows = np.repeat(np.arange(draws), days)
    weights = np.zeros((draws, days))
    np.add.at(weights, (rows, drawn.ravel()), 1.0)
    return weights


def interval(values: Floats) -> list[float] | None:
    """The interval that holds a share of `LEVEL` of the draws; ``None`` if fewer than half of them have a value."""
    finite = values[np.isfinite(values)]
    if len(finite) * 2 < len(values) or not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def mean_interval(sums: Any, counts: Any, weights: Floats) -> list[float] | None:
    """Interval of a mean over cases, from the sum and the number of cases of each day."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return interval((weights @ sums) / (weights @ counts))


def auc(scores: Floats, positive: npt.NDArray[np.bool_], day: npt.NDArray[np.int64]) -> Callable[[Floats], float]:
    """The area under the ROC curve as a function of the weight of each day; NaN without cases of both classes.

    The scores are sorted once for all draws. With weights of 1 it equals ``sklearn.metrics.roc_auc_score``.
    """
    order = np.argsort(scores, kind="stable")
    day, positive, sorted_scores = day[order], positive[order], scores[order]
    ties = np.flatnonzero(np.diff(sorted_scores, prepend=np.nan) != 0)

    def weighted(weights: Floats) -> float:
        weight: Any = weights[day]
        ones = np.add.reduceat(weight * positive, ties)
        zeros = np.add.reduceat(weight * ~positive, ties)
        total = ones.sum() * zeros.sum()
        return float((ones * (zeros.cumsum() - zeros / 2)).sum() / total) if total else math.nan

    return weighted if len(scores) else lambda _: math.nan
