"""All that is measured on the decisions of a model over a span of days."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hiermt.cli import forecasts, scores
from hiermt.cli.bootstrap import DRAWS, LEVEL, Floats, auc, block_length, day_weights, interval
from hiermt.data import DataError
from hiermt.data.optional import import_optional
from hiermt.inference.rolling import Decisions

_LEAST_STOCKS = 3


def evaluate(
    decisions: Decisions,
    truth: Tensor,
    returns: Tensor,
    dates: Sequence[Any],
    symbols: Sequence[str],
    horizon: int = 1,
    task: str = "two-headed",
) -> dict[str, Any]:
    """Measures decisions and probabilities against what happened.

    Args:
        decisions (Decisions): of ``W`` days and ``S`` stocks.
        truth (Tensor): true classes, ``[W, S]``; -1, where a stock is absent or has no label, does not count.
        returns (Tensor): returns to which the decisions refer, ``[W, S]``.
        dates (sequence): last day of each window, as numpy's or ISO dates.
        symbols (sequence of str): names of the stocks.
        horizon (int): trading days of a return. (default: ``1``)
        task (str): that decided, as in :mod:`hiermt.cli.kinds`. (default: ``"two-headed"``)

    Returns:
        A dict of numbers, lists and texts only: ``task``, ``decision``, ``signal``, ``direction`` (see
        :func:`hiermt.cli.scores.evaluate`), each with ``forecast`` (see :mod:`hiermt.cli.forecasts`);
        ``information_coefficient``, ``by_year``, ``by_symbol`` (years and stocks that count), ``bootstrap``, ``span``.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    p = decisions.probabilities.double().numpy()
    joint = decisions.classes.double().numpy()
    true, chosen, moves = truth.numpy(), decisions.predictions.numpy(), returns.double().numpy()
    weights = day_weights(len(true), horizon)
    counted = true >= 0
    if not counted.any():
        raise DataError("table: no stock is present on a day with a label; give more days, or more prices")
    moved = counted & (true != 1)
    result = {"task": task, **scores.evaluate(decisions.predictions, decisions.probabilities, truth)}
    result["decision"]["forecast"] = forecasts.classes(joint, true, chosen, counted, weights)
    result["decision"]["mean_confidence"] = float(decisions.confidences.double().numpy()[counted].mean())
    result["signal"]["forecast"] = forecasts.binary(p[..., 1], moved, counted, weights)
    result["direction"]["forecast"] = forecasts.binary(p[..., 3], true == 2, moved, weights)
    by_day = rank_correlations(joint[..., 2] - joint[..., 0], moves, counted)
    result["information_coefficient"] = {**mean_and_t(by_day, weights), "by_day": [_number(value) for value in by_day]}
    years = np.array([str(date)[:4] for date in dates])
    result["by_year"] = [
        {
            "year": str(year),
            **_group(counted & (years == year)[:, None], p, joint, true, chosen),
            "ic": _number(_mean(by_day[years == year])),
        }
        for year in np.unique(years[counted.any(axis=1)])
    ]
    stock = np.arange(len(symbols))
    result["by_symbol"] = [
        {"symbol": symbol, **_group(counted & (stock == i), p, joint, true, chosen)}
        for i, symbol in enumerate(symbols)
        if counted[:, i].any()
    ]
    result["bootstrap"] = {"draws": DRAWS, "level": LEVEL, "block_days": block_length(len(true), horizon)}
    result["span"] = {"first": str(dates[0]), "last": str(dates[-1]), "days": len(true), "stocks": len(symbols)}
    return result


def rank_correlations(score: Floats, returns: Floats, there: npt.NDArray[np.bool_] | None = None) -> Floats:
    """Spearman's correlation of score and return over the stocks of each day: the rank information coefficient.

    A day whose scores or returns are all equal, or that has fewer than three stocks, has none: NaN. Stocks that are not
    `there` do not count.
    """
    rank = import_optional("scipy.stats", "measuring a model").rankdata
    if score.shape[1] < _LEAST_STOCKS:
        return np.full(len(score), math.nan)
    there = np.ones(score.shape, dtype=bool) if there is None else there
    count = there.sum(1, keepdims=True)
    # Behind all others, so that these keep their ranks.
    a, b = (np.where(there, rank(np.where(there, part, np.inf), axis=1), 0.0) for part in (score, returns))
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (np.where(there, part - part.sum(1, keepdims=True) / count, 0.0) for part in (a, b))
        correlations: Floats = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.where(count[:, 0] < _LEAST_STOCKS, math.nan, correlations)


def mean_and_t(by_day: Floats, weights: Floats) -> dict[str, Any]:
    """Mean, t and bootstrap interval of a figure of each day; NaN days do not count."""
    there = np.isfinite(by_day)
    values = by_day[there]
    if len(values) < 2:
        return {"days": len(values), "mean": _number(_mean(values)), "t": None, "interval": None}
    deviation = values.std(ddof=1)
    filled = np.where(there, by_day, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (weights @ filled) / (weights @ there)
    return {
        "days": len(values),
        "mean": float(values.mean()),
        "t": _number(values.mean() / deviation * math.sqrt(len(values))) if deviation > 0 else None,
        "interval": interval(draws),
    }


def _group(
    where: npt.NDArray[np.bool_],
    p: Floats,
    joint: Floats,
    true: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """Figures of the cases of a year, or of a stock."""
    arrays: Any = (p, joint, true, chosen)
    p, joint, true, chosen = (array[where] for array in arrays)
    shares = np.bincount(true, minlength=3) / true.size
    losses = -np.log(np.clip(np.take_along_axis(joint, true[..., None], -1), np.finfo(np.float64).eps, 1))
    moved = true != 1
    return {
        "count": int(true.size),
        "accuracy": float((chosen == true).mean()),
        "base_accuracy": float(shares.max()),
        "log_loss": float(losses.mean()),
        "base_log_loss": float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum()),
        "signal_auc": _area(p[..., 1], moved),
        "direction_auc": _area(p[..., 3][moved], true[moved] == 2),
        "signal_share": float(moved.mean()),
    }


def _area(scores_: Floats, positive: npt.NDArray[np.bool_]) -> float | None:
    return _number(auc(scores_, positive, np.zeros(len(scores_), dtype=np.int64))(np.ones(1)))


def _mean(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
