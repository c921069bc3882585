"""The evaluation of a model in words and tables."""

from __future__ import annotations

from typing import Any

from hiermt.cli import output, scores
from hiermt.cli.bootstrap import LEVEL

NO_PROFIT = (
    "A forecast that is better than the base rate is not a profit: costs, slippage and the moves of the market as a "
    "whole are not in these figures."
)
BASE_RATE = (
    "The base rate is the best forecast that says the same every day, chosen with the outcome of the span in hand."
)
_HEADS = {"decision": "Down / Neutral / Up", "signal": "Noise / Signal", "direction": "Down / Up, where it moved"}


def text(result: dict[str, Any]) -> str:
    """What a command shows of the result of :func:`hiermt.cli.evaluation.evaluate`."""
    sentences = (ranking(result), belief(result), f"{knows(result)} {NO_PROFIT}")
    tables = (scores.table(result), scores.verdict(result), forecasts(result))
    return "\n\n".join([*tables, *map(output.prose, sentences)])


def forecast_rows(result: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and rows of log loss, Brier score and AUC, each beside the base rate."""
    columns = ("", "log loss", "base rate", "gain", "Brier", "base rate", "AUC")
    rows = []
    for key, name in _HEADS.items():
        found = result[key].get("forecast", {"count": 0})
        if not found["count"]:
            continue
        rows.append(
            [
                name,
                f"{found['log_loss']:.4f}",
                f"{found['base_log_loss']:.4f}",
                f"{found['gain']:+.4f}{between(found['gain_interval'], '+.4f')}",
                f"{found['brier']:.4f}",
                f"{found['base_brier']:.4f}",
                "" if found.get("auc") is None else f"{found['auc']:.3f}{between(found['auc_interval'], '.3f')}",
            ]
        )
    return columns, rows


def forecasts(result: dict[str, Any]) -> str:
    """The table of :func:`forecast_rows`, and what its figures are."""
    opening = f"Probabilities, in brackets {LEVEL:.0%} intervals by block bootstrap over days:"
    return f"{opening}\n\n{output.table(*forecast_rows(result))}"


def ranking(result: dict[str, Any]) -> str:
    """One sentence on the rank information coefficient."""
    found = result["information_coefficient"]
    if found["interval"] is None or found["t"] is None:
        return "Rank information coefficient: too few days with three stocks of different scores."
    return (
        f"Rank information coefficient of P(up) - P(down) and the return, by day: mean {found['mean']:+.4f}"
        f"{between(found['interval'], '+.4f')}, t {found['t']:+.1f}, {found['days']:,} days. It is 0 without knowledge."
    )


def belief(result: dict[str, Any]) -> str:
    """One sentence that compares what the model believes of its decisions with how often they are right."""
    decision = result["decision"]
    found = (
        f"The model gives its decisions a probability of {decision['forecast']['mean_probability']:.1%} on average; "
        f"{decision['accuracy']:.1%} are right."
    )
    if not two_headed(result):
        return found
    return f"{found} (Its confidence, {decision['mean_confidence']:.1%}, is that of the head that decided alone.)"


def two_headed(result: dict[str, Any]) -> bool:
    """Whether a head for the signal and one for the direction decided, each with a loss and a probability."""
    return bool(result["task"] == "two-headed")


def knows(result: dict[str, Any]) -> str:
    """One sentence that says whether the model knows what the base rate does not.

    A head knows something if the whole interval of its area under the ROC curve is above one half, which is what any
    constant forecast has, and the whole interval of its log loss below that of the base rate.
    """
    heads = {"signal": "whether a stock moves", "direction": "the direction of a move"}
    known: dict[bool, list[str]] = {True: [], False: []}
    unknown = []
    for head, what in heads.items():
        forecast = result[head]["forecast"]
        if forecast.get("auc_interval") is None or forecast["gain_interval"] is None:
            unknown.append(what)
            continue
        (low, high), gain = forecast["auc_interval"], forecast["gain_interval"][0]
        figures = f"AUC {forecast['auc']:.3f}, {LEVEL:.0%} interval {low:.3f} to {high:.3f}"
        if low > 0.5 and gain <= 0:
            figures += ", but a log loss no better than the base rate"
        known[low > 0.5 and gain > 0].append(f"{what} ({figures})")
    parts = []
    if known[True]:
        parts.append(f"The model knows what the base rate does not about {' and '.join(known[True])}")
    if known[False]:
        opening = "but shows no such knowledge" if parts else "The model shows no knowledge beyond the base rate"
        parts.append(f"{opening} about {' and '.join(known[False])}")
    if unknown:
        opening = "and there are too few cases to tell" if parts else "There are too few cases to tell"
        parts.append(f"{opening} {' and '.join(unknown)}")
    return ", ".join(parts) + "."


def between(interval: list[float] | None, form: str) -> str:
    """An interval in brackets, or nothing."""
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
