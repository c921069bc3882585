"""Results that are one number a stock: the probability of a move up, or a return; measured, and written."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hiermt.cli import evaluation, forecasts, output, summary
from hiermt.cli.bootstrap import DRAWS, LEVEL, block_length, day_weights
from hiermt.cli.report import document, embedded, html_table, record_parts
from hiermt.data import DataError
from hiermt.training.tasks.absent import ABSENT

HEADERS: dict[str, tuple[str, ...]] = {
    "binary": ("date", "symbol", "prediction", "probability"),
    "regression": ("date", "symbol", "predicted_return"),
}
_EVENTS = ("Not up", "Up")


def measure(
    name: str,
    results: Mapping[str, Tensor],
    returns: Tensor,
    dates: Sequence[Any],
    symbols: Sequence[str],
    horizon: int,
    threshold: float,
) -> dict[str, Any]:
    """Figures beside the base rate, or beside the constant forecasts that are best in hindsight.

    Args:
        name (str): ``"binary"`` or ``"regression"``.
        results (mapping): of the task, ``[W, S]``; absent stocks are marked.
        returns (Tensor): ``[W, S]``, NaN where there is none.
        dates, symbols: of the windows and the stocks.
        horizon (int): trading days of a return.
        threshold (float): a return above it is a move up.

    Raises:
        DataError: nothing can be measured.
    """
    moves = returns.double().numpy()
    value = results["probabilities" if name == "binary" else "predictions"].double().numpy()
    there = np.isfinite(moves) & np.isfinite(value)
    if not there.any():
        raise DataError("table: no stock is present on a day with a label; give more days, or more prices")
    weights = day_weights(len(moves), horizon)
    by_day = evaluation.rank_correlations(value, moves, there)
    found: dict[str, Any] = {"task": name, "count": int(there.sum())}
    if name == "binary":
        up = moves > threshold
        found["forecast"] = forecasts.binary(value, up, there, weights)
        right = (results["predictions"].numpy() == up)[there]
        share = found["forecast"]["base_rate"]
        found |= {"accuracy": float(right.mean()), "base_accuracy": max(share, 1 - share)}
    else:
        error, known = (value - moves)[there], moves[there]
        found |= {
            "mae": float(np.abs(error).mean()),
            "base_mae": float(np.abs(known - np.median(known)).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "base_rmse": float(known.std()),
        }
    found["information_coefficient"] = {
        **evaluation.mean_and_t(by_day, weights),
        "by_day": [float(one) if np.isfinite(one) else None for one in by_day],
    }
    found["bootstrap"] = {"draws": DRAWS, "level": LEVEL, "block_days": block_length(len(moves), horizon)}
    found["span"] = {"first": str(dates[0]), "last": str(dates[-1]), "days": len(moves), "stocks": len(symbols)}
    return found


def rows(
    name: str, dates: Any, symbols: Sequence[str], results: Mapping[str, Tensor], returns: Tensor | None = None
) -> Iterable[tuple[Any, ...]]:
    """One row of ``HEADERS[name]`` per window and stock that is present, with its return if that is given."""
    predictions = results["predictions"].tolist()
    probabilities = results["probabilities"].tolist() if name == "binary" else None
    known = None if returns is None else returns.tolist()
    for w, date in enumerate(dates):
        for s, symbol in enumerate(symbols):
            prediction = predictions[w][s]
            if prediction == ABSENT if name == "binary" else prediction != prediction:
                continue
            if probabilities is None:
                row: tuple[Any, ...] = (date, symbol, f"{prediction:.6f}")
            else:
                row = (date, symbol, _EVENTS[prediction], f"{probabilities[w][s]:.4f}")
            if known is not None:
                row += (f"{known[w][s]:.6f}" if known[w][s] == known[w][s] else "",)
            yield row


def table_rows(scored: Mapping[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and rows of the figures, each beside that of the base rate."""
    columns = ("", "model", "base")
    if scored["task"] == "regression":
        names = {"mae": "mean absolute error", "rmse": "root mean squared error"}
        return columns, [[text, f"{scored[key]:.6f}", f"{scored[f'base_{key}']:.6f}"] for key, text in names.items()]
    found = scored["forecast"]
    area = "" if found.get("auc") is None else f"{found['auc']:.3f}{summary.between(found['auc_interval'], '.3f')}"
    return columns, [
        ["accuracy", f"{scored['accuracy']:.1%}", f"{scored['base_accuracy']:.1%}"],
        ["log loss", f"{found['log_loss']:.4f}", f"{found['base_log_loss']:.4f}"],
        ["Brier score", f"{found['brier']:.4f}", f"{found['base_brier']:.4f}"],
        ["AUC", area, "0.5"],
    ]


def text(scored: Mapping[str, Any]) -> str:
    """What a command shows."""
    opening = f"{scored['count']:,} cases, beside the forecast that says the same every day:"
    table = output.table(*table_rows(scored))
    return f"{opening}\n\n{table}\n\n{output.prose(_ranking(scored))}\n\n{output.prose(summary.NO_PROFIT)}"


def page(
    title: str,
    scored: Mapping[str, Any],
    facts: Mapping[str, Any],
    curves: bytes | None = None,
    record: dict[str, Any] | None = None,
) -> str:
    """The report."""
    span = scored["span"]
    days = f"{span['days']:,} days, {span['first']} to {span['last']}, {span['stocks']} stocks"
    return document(
        title,
        [
            f"<p>All figures are of {days}. {summary.BASE_RATE} {summary.NO_PROFIT}</p>",
            "<h2>Figures</h2>",
            html_table(*table_rows(scored)),
            f"<p>{html.escape(_ranking(scored))}</p>",
            *(["<h2>Training</h2>", embedded("Losses", curves)] if curves is not None else []),
            *record_parts(facts, record),
        ],
    )


def _ranking(scored: Mapping[str, Any]) -> str:
    return summary.ranking(dict(scored)).replace("P(up) - P(down)", "the forecast")
