"""Quality of the probabilities of a model, beside the base rate: the best forecast that says the same every day."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from hiermt.cli.bootstrap import Floats, auc, interval, mean_interval
from hiermt.data import CLASSES
from hiermt.data.optional import import_optional

_BINS = 10


def entropy(share: float) -> float:
    """Cross entropy of two classes under their own base rate: no constant forecast has a lower log loss."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def base_losses(rates: dict[str, float], weight: float = 1.0) -> dict[str, float]:
    """Losses of the base rates of a span, under the names of the losses of a training.

    Args:
        rates (dict): ``signal`` and ``up``, as from :meth:`hiermt.cli.experiment.Experiment.base_rates`.
        weight (float): of the direction loss in the total. (default: ``1.0``)
    """
    losses = {"signal_loss": entropy(rates["signal"])}
    if "up" in rates:
        losses["direction_loss"] = entropy(rates["up"])
        losses["total_loss"] = losses["signal_loss"] + weight * losses["direction_loss"]
    return losses


def binary(probability: Floats, truth: npt.NDArray[np.bool_], where: npt.NDArray[np.bool_], weights: Floats) -> Any:
    """Log loss, Brier score, area under the ROC curve and reliability of a forecast of two classes.

    Args:
        probability, truth, where (array): probability of the event, whether it happened, and which cases count.
        weights (array): of each day in each draw, as from :func:`hiermt.cli.bootstrap.day_weights`.

    Shapes:
        - **probability**, **truth**, **where:** ``[W, S]``; **weights:** ``[draws, W]``
        - **returns:** dict: ``count``, ``base_rate`` (share of the event in these cases), ``log_loss``,
          ``base_log_loss``, ``brier``, ``base_brier``, ``gain`` (base minus model, log loss; above 0 is better than the
          base rate), ``gain_interval``, ``auc``, ``auc_interval`` (``None`` with one class only), ``reliability``
    """
    metrics = import_optional("sklearn.metrics", "measuring a model")
    count = int(where.sum())
    if not count:
        return {"count": 0}
    day = np.broadcast_to(np.arange(len(where))[:, None], where.shape)[where]
    p, y = probability[where], truth[where]
    rate = float(y.mean())
    both = 0 < rate < 1
    per_case = _log_losses(p, y)
    base = entropy(rate)
    sums = np.bincount(day, _log_losses(np.full(count, rate), y) - per_case, len(where))
    counts = np.bincount(day, minlength=len(where)).astype(float)
    area = auc(p, y, day)
    return {
        "count": count,
        "base_rate": rate,
        "mean_probability": float(p.mean()),
        "log_loss": float(metrics.log_loss(y, np.stack([1 - p, p], 1), labels=[False, True])),
        "base_log_loss": base,
        "brier": float(metrics.brier_score_loss(y, p, pos_label=True)),
        "base_brier": rate * (1 - rate),
        "gain": float(base - per_case.mean()),
        "gain_interval": mean_interval(sums, counts, weights),
        "auc": float(metrics.roc_auc_score(y, p)) if both else None,
        "auc_interval": interval(np.array([area(draw) for draw in weights])) if both else None,
        "reliability": reliability(p, y, day, weights),
    }


def classes(
    probability: Floats,
    truth: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
    where: npt.NDArray[np.bool_],
    weights: Floats,
) -> Any:
    """The same for the joint probabilities of Down, Neutral and Up, ``[W, S, 3]``.

    The Brier score is the sum over the classes. ``mean_probability`` is that of the decided class, the model's estimate
    of its own accuracy, and ``reliability`` compares the two.
    """
    metrics = import_optional("sklearn.metrics", "measuring a model")
    if not where.any():
        return {"count": 0}
    day = np.broadcast_to(np.arange(len(truth))[:, None], truth.shape)[where]
    flat, y, chosen = probability[where], truth[where], chosen[where]
    shares = np.bincount(y, minlength=3) / len(y)
    losses = -np.log(np.clip(np.take_along_axis(flat, y[:, None], 1)[:, 0], _TINY, 1))
    base = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    of_base = -np.log(np.where(shares > 0, shares, 1.0))[y]
    sums = np.bincount(day, of_base - losses, len(truth))
    counts = np.bincount(day, minlength=len(truth)).astype(float)
    decided = np.take_along_axis(flat, chosen[:, None], 1)[:, 0]
    return {
        "count": len(y),
        "base_rates": dict(zip(CLASSES, shares.tolist(), strict=True)),
        "mean_probability": float(decided.mean()),
        "log_loss": float(metrics.log_loss(y, flat / flat.sum(1, keepdims=True), labels=[0, 1, 2])),
        "base_log_loss": base,
        "brier": float(sum(metrics.brier_score_loss(y == k, flat[:, k], pos_label=True) for k in range(3))),
        "base_brier": float((shares * (1 - shares)).sum()),
        "gain": float(base - losses.mean()),
        "gain_interval": mean_interval(sums, counts, weights),
        "reliability": reliability(decided, y == chosen, day, weights),
    }


def reliability(
    probability: Floats, truth: npt.NDArray[np.bool_], day: npt.NDArray[np.int64], weights: Floats
) -> list[dict[str, Any]]:
    """Forecast and observed frequency in bins of about equal numbers of cases, with intervals.

    The bins and their means are those of ``sklearn.calibration.calibration_curve`` with ``strategy="quantile"``.
    """
    curve = import_optional("sklearn.calibration", "measuring a model").calibration_curve
    clipped = np.clip(probability, 0.0, 1.0)
    observed, predicted = curve(truth, clipped, n_bins=_BINS, strategy="quantile", pos_label=True)
    edges = np.percentile(clipped, np.linspace(0, 1, _BINS + 1) * 100)
    bins = np.searchsorted(edges[1:-1], clipped)
    rows = []
    found = np.unique(bins)
    for observation, prediction, bin in zip(observed, predicted, found, strict=True):
        inside = bins == bin
        sums = np.bincount(day[inside], truth[inside], weights.shape[1])
        counts = np.bincount(day[inside], minlength=weights.shape[1]).astype(float)
        rows.append(
            {
                "predicted": float(prediction),
                "observed": float(observation),
                "interval": mean_interval(sums, counts, weights),
                "count": int(inside.sum()),
            }
        )
    return rows


# As sklearn.metrics.log_loss bounds the probabilities of float64.
_TINY = float(np.finfo(np.float64).eps)


def _log_losses(p: Floats, y: npt.NDArray[np.bool_]) -> Floats:
    bounded: Floats = np.clip(np.where(y, p, 1 - p), _TINY, 1.0)
    return -np.log(bounded)
