"""Pictures of an evaluation, for the report. Each draws what a model without knowledge would look like, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hiermt.cli.attention import Attention
from hiermt.cli.bootstrap import LEVEL
from hiermt.cli.pictures import BLUE, GREEN, GREY, ORANGE, new_figure
from hiermt.data import CLASSES
from hiermt.data.optional import import_optional

_COLOURS = {"Down": ORANGE, "Neutral": "#BBBBBB", "Up": BLUE}
_MOST_LABELS = 60


def reliability(scores: dict[str, Any]) -> Any:
    """Forecast against observed frequency of both heads and of the decided class."""
    figure = new_figure(11, 4)
    titles = {
        "signal": "P(signal)",
        "direction": "P(up), where it moved",
        "decision": "Probability of the decided class",
    }
    for i, (key, title) in enumerate(titles.items()):
        axes = figure.add_subplot(1, 3, i + 1)
        forecast: dict[str, Any] = scores[key]["forecast"]
        axes.set_title(title, fontsize=10)
        if not forecast["count"]:
            axes.set_axis_off()
            continue
        rows = forecast["reliability"]
        x, y = (np.array([row[name] for row in rows]) for name in ("predicted", "observed"))
        spread = [row["interval"] or [row["observed"]] * 2 for row in rows]
        low, high = (np.array(side) for side in zip(*spread, strict=True))
        rate = scores[key]["accuracy"] if key == "decision" else forecast["base_rate"]
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="forecast = frequency")
        label = "accuracy" if key == "decision" else "base rate"
        axes.axhline(rate, color=GREEN, linewidth=1.2, linestyle="--", label=f"{label} {rate:.1%}")
        errors = np.maximum([y - low, high - y], 0)
        axes.errorbar(
            x, y, errors, color=BLUE, marker="o", markersize=4, linewidth=1, label=f"model, {LEVEL:.0%} interval"
        )
        both = np.concatenate([x, low, high, [rate]])
        margin = 0.08 * max(np.ptp(both), 0.05)
        axes.set_xlim(both.min() - margin, both.max() + margin)
        axes.set_ylim(both.min() - margin, both.max() + margin)
        axes.set_xlabel("forecast")
        axes.set_ylabel("observed frequency" if i == 0 else "")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7.5, loc="upper left")
    return figure


def ranking(scores: Mapping[str, Any], dates: Sequence[str]) -> Any:
    """Rank information coefficient of each day, and its running sum beside the sums that chance gives."""
    found = scores["information_coefficient"]
    values = np.array([np.nan if value is None else value for value in found["by_day"]], dtype=np.float64)
    days = np.array(dates, dtype="datetime64[D]").astype(object)
    figure = new_figure(11, 3.6)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    left.axhline(0, color=GREY, linewidth=1)
    left.plot(days, values, ".", color=BLUE, markersize=2, alpha=0.5)
    left.axhline(found["mean"] or 0, color=ORANGE, linewidth=1.5, label=f"mean {found['mean'] or 0:+.4f}")
    left.set_title("Rank information coefficient by day", fontsize=10)
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    left.set_ylim(-1.3 * largest or -1.0, 1.3 * largest or 1.0)
    left.legend(fontsize=8, loc="upper left")
    there = np.isfinite(values)
    band = 1.96 * np.nanstd(values) * np.sqrt(np.cumsum(there)) if there.any() else np.zeros(len(values))
    right.fill_between(days, -band, band, color=GREY, alpha=0.2, label="95% of random walks with the same spread")
    right.plot(days, np.nancumsum(values), color=BLUE, linewidth=1.2, label="sum of the days so far")
    right.axhline(0, color=GREY, linewidth=1)
    right.set_title("Running sum", fontsize=10)
    right.legend(fontsize=8, loc="upper left")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.tick_params(axis="x", labelrotation=30, labelsize=8)
    return figure


def by_group(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """AUC of both heads, and log loss minus that of the base rate, for each year or stock.

    More than can be named are drawn in the order of the value, so that the picture shows how they are spread.
    """
    many = len(rows) > _MOST_LABELS
    labels = [row[name] for row in rows]
    figure = new_figure(11, 3.4)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    at = np.arange(len(rows))
    for key, colour, label in (("signal_auc", BLUE, "signal"), ("direction_auc", ORANGE, "direction")):
        values = np.array([np.nan if row[key] is None else row[key] for row in rows], dtype=np.float64)
        left.plot(at, np.sort(values) if many else values, "o", color=colour, markersize=2 if many else 4, label=label)
    left.axhline(0.5, color=GREY, linewidth=1.2, linestyle="--", label="no knowledge")
    left.set_title(f"AUC by {name}", fontsize=10)
    left.legend(fontsize=8)
    gain = [row["base_log_loss"] - row["log_loss"] for row in rows]
    gain = sorted(gain) if many else gain
    right.bar(at, gain, color=[BLUE if value > 0 else ORANGE for value in gain], width=1.0 if many else 0.8)
    right.axhline(0, color=GREY, linewidth=1)
    right.set_title(f"Log loss: base rate of the {name} minus model; above 0 is better", fontsize=10)
    for axes in (left, right):
        if many:
            axes.set_xlabel(f"number of the {name} in the order of the value", fontsize=8)
        else:
            axes.set_xticks(at, labels, rotation=60 if len(rows) > 8 else 0, fontsize=7)
        axes.grid(alpha=0.25, axis="y")
    return figure


def balance(found: Mapping[str, Any]) -> Any:
    """Shares of the classes in each quarter, over training, validation and test."""
    quarters = found["dates"].astype("datetime64[M]").astype(np.int64) // 3
    unique = np.unique(quarters)
    # -1 is a stock without a label.
    counts = [[(found["classes"][:, quarters == q] == k).sum() for q in unique] for k in range(3)]
    shares = np.array(counts) / np.maximum(np.sum(counts, axis=0), 1)
    days = (unique * 3).astype("datetime64[M]").astype("datetime64[D]").astype(object)
    figure = new_figure(11, 3)
    axes = figure.add_subplot()
    if len(days) > 1:
        axes.stackplot(days, shares, labels=CLASSES, colors=[_COLOURS[name] for name in CLASSES], alpha=0.85)
    else:
        bottom = np.concatenate([[0], shares[:, 0].cumsum()[:-1]])
        axes.bar(CLASSES, shares[:, 0], bottom=bottom * 0, color=[_COLOURS[name] for name in CLASSES])
    for name, (first, last) in found["spans"].items():
        middle = first + (last - first) // 2
        axes.axvline(first.astype(object), color="black", linewidth=1, linestyle=":")
        axes.text(middle.astype(object), 1.02, name, ha="center", fontsize=9)
    axes.set_ylim(0, 1)
    if len(days) > 1:
        axes.set_xlim(days[0], days[-1])
    axes.set_ylabel("share of stocks and days")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def graph(edge_index: Any, edge_weight: Any, symbols: Sequence[str]) -> Any:
    """The stocks on a circle, an edge as wide as its weight, beside the matrix of the weights."""
    stocks = len(symbols)
    source, target = edge_index.cpu().numpy()
    weight = np.ones(len(source)) if edge_weight is None else edge_weight.detach().cpu().double().numpy()
    matrix = np.full((stocks, stocks), np.nan)
    matrix[target, source] = weight
    figure = new_figure(11, 5)
    circle, image = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    angle = np.linspace(0, 2 * np.pi, stocks, endpoint=False)
    at = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    collection = import_optional("matplotlib.collections", "drawing pictures").LineCollection
    widths = 0.3 + 2.5 * np.abs(weight) / max(float(np.abs(weight).max(initial=0)), 1e-12)
    colours = [BLUE if value >= 0 else ORANGE for value in weight]
    lines = np.stack([at[source], at[target]], axis=1)
    circle.add_collection(collection(lines, linewidths=widths, colors=colours, alpha=_alpha(len(source))))
    circle.plot(*at.T, "o", color="black", markersize=3)
    if stocks <= _MOST_LABELS:
        for symbol, (x, y), turn in zip(symbols, at, np.degrees(angle), strict=True):
            left = 90 < turn % 360 < 270
            circle.text(
                1.06 * x,
                1.06 * y,
                symbol,
                ha="right" if left else "left",
                va="center",
                rotation=turn + 180 if left else turn,
                rotation_mode="anchor",
                fontsize=7,
            )
    circle.set_xlim(-1.35, 1.35)
    circle.set_ylim(-1.35, 1.35)
    circle.set_aspect("equal")
    circle.set_axis_off()
    circle.set_title(
        f"{len(source)} directed edges, {int((np.bincount(target, minlength=stocks) == 0).sum())} stocks without",
        fontsize=10,
    )
    _matrix(figure, image, matrix, symbols, "Weight of each edge")
    return figure


def attention(found: Sequence[Attention], symbols: Sequence[str]) -> Any:
    """Mean attention of each convolution, relative to equal attention to all neighbours."""
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    figure = new_figure(11, 4.6 * rows)
    for i, part in enumerate(found):
        ratio = np.divide(part.matrix, part.uniform, out=np.full(part.matrix.shape, np.nan), where=part.uniform > 0)
        axes = figure.add_subplot(rows, columns, i + 1)
        largest = max(float(np.nanmax(np.abs(np.log2(np.maximum(ratio, 1e-6))))), 0.1)
        _matrix(figure, axes, np.log2(np.maximum(ratio, 1e-6)), symbols, part.name, "PuOr", (-largest, largest))
    figure.supxlabel(
        "log2 of mean attention times the number of neighbours: 0 is equal attention to all, 1 is twice that. "
        "Row: stock that reads; column: stock that is read; diagonal: the stock itself.",
        fontsize=8,
        color=GREY,
    )
    return figure


def _matrix(
    figure: Any,
    axes: Any,
    matrix: npt.NDArray[np.float64],
    symbols: Sequence[str],
    title: str,
    colours: str = "viridis",
    limits: tuple[float, float] | None = None,
) -> None:
    low, high = limits or (None, None)
    if len(symbols) > _MOST_LABELS:
        # Points, because a cell would be smaller than a pixel. With grey edges, those near zero are seen, too.
        rows, columns = np.nonzero(np.isfinite(matrix))
        size = float(np.clip(20_000 / max(len(rows), 1), 1.5, 14))
        points = {"s": size, "linewidths": 0.2, "edgecolors": GREY}
        shown = axes.scatter(columns, rows, c=matrix[rows, columns], cmap=colours, vmin=low, vmax=high, **points)
        axes.set_xlim(-1, len(symbols))
        axes.set_ylim(len(symbols), -1)
        axes.set_aspect("equal")
        axes.set_xlabel("number of the stock that is read", fontsize=8)
        axes.set_ylabel("number of the stock that reads", fontsize=8)
    else:
        shown = axes.imshow(matrix, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.8)
    if len(symbols) <= _MOST_LABELS:
        axes.set_xticks(range(len(symbols)), symbols, rotation=90, fontsize=6)
        axes.set_yticks(range(len(symbols)), symbols, fontsize=6)
    axes.set_title(title, fontsize=10)


def _alpha(edges: int) -> float:
    return float(np.clip(40 / max(edges, 1), 0.05, 0.7))
