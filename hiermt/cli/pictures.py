"""PNG pictures of the losses and confusion matrices of a training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from hiermt.data.optional import import_optional
from hiermt.io.files import atomic_write

# Colours that colour-blind readers and print keep apart (Okabe and Ito).
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"

_TITLES = {"total_loss": "Total loss", "signal_loss": "Signal head", "direction_loss": "Direction head"}

# Nats that the axis of a loss covers at least.
_LEAST_SPAN = 0.02


def draw_curves(
    losses: Mapping[str, Sequence[float]], path: Path | IO[bytes], base: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Draws the loss curves, each with the loss of its base rate.

    Args:
        losses (dict): lists ``train_*`` and optionally ``validation_*`` with one value per epoch, such as
            ``train_total_loss``.
        path (Path or file): the target; a path is written atomically.
        base (dict, optional): for ``train`` and ``validation``, the loss of a forecast that always says the base rate
            of that span, by the name of the loss. A model that learns nothing reaches this line and stays on it.
            (default: ``None``)

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written; an old one is intact.
    """
    save(curves(losses, base), path)


def curves(losses: Mapping[str, Sequence[float]], base: Mapping[str, Mapping[str, float]] | None = None) -> Any:
    """The figure of :func:`draw_curves`."""
    figure = new_figure(10, 3.8)
    parts = dict.fromkeys(name.partition("_")[2] for name in losses)
    titles = {name: _TITLES.get(name, name.removesuffix("_loss").capitalize()) for name in parts}
    spans = {"train": ("training", BLUE), "validation": ("validation", ORANGE)}
    for i, (name, title) in enumerate(titles.items()):
        axes = figure.add_subplot(1, max(len(titles), 2), i + 1)
        for span, (label, colour) in spans.items():
            values = np.array(losses.get(f"{span}_{name}", []), dtype=np.float64)
            if not len(values):
                continue
            axes.plot(range(1, len(values) + 1), values, color=colour, marker="o", markersize=3, label=label)
            constant = (base or {}).get(span, {}).get(name)
            if constant is not None:
                axes.axhline(constant, color=colour, linewidth=1.2, linestyle="--", label=f"base rate of {label}")
            if span == "validation" and name == "total_loss":
                best = int(np.argmin(values)) + 1
                axes.axvline(best, color=GREY, linewidth=1, linestyle=":", label=f"kept: epoch {best}")
        # A difference in the fourth digit must not fill the panel.
        low, high = axes.get_ylim()
        if high - low < _LEAST_SPAN:
            middle = (low + high) / 2
            axes.set_ylim(middle - _LEAST_SPAN / 2, middle + _LEAST_SPAN / 2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max([1, *map(len, losses.values())]) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_ylabel("loss, lower is better" if i == 0 else "")
        axes.grid(alpha=0.25)
    named = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def draw_confusion(scores: dict[str, Any], path: Path | IO[bytes], note: str = "") -> None:
    """Draws the confusion matrices of the decision and of both heads.

    Args:
        scores (dict): the result of :func:`hiermt.cli.scores.evaluate`.
        path (Path or file): the target; a path is written atomically.
        note (str): a line under the picture. (default: ``""``)

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written; an old one is intact.
    """
    figure = new_figure(11, 4.3)
    titles = {"decision": "Decision", "signal": "Signal head", "direction": "Direction head, where it moved"}
    for i, (key, title) in enumerate(titles.items()):
        score = scores[key]
        axes = figure.add_subplot(1, 3, i + 1)
        if not score["count"]:
            axes.set_title(f"{title}\nno case", fontsize=10)
            axes.set_axis_off()
            continue
        counts = np.array(score["confusion"])
        total = counts.sum(axis=1, keepdims=True)
        share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(counts.shape):
            axes.text(
                column,
                row,
                f"{share[row, column]:.0%}\n{counts[row, column]:,}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if share[row, column] > 0.55 else "black",
            )
        ticks = range(len(score["classes"]))
        axes.set_xticks(ticks, score["classes"])
        axes.set_yticks(ticks, score["classes"], rotation=90, va="center")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true" if i == 0 else "")
        axes.set_title(
            f"{title}\naccuracy {score['accuracy']:.1%}, always {score['majority']} {score['majority_accuracy']:.1%}",
            fontsize=10,
        )
    figure.supxlabel(note or "Shares are of the true class; counts below.", fontsize=8, color=GREY)
    save(figure, path)


def save(figure: Any, path: Path | IO[bytes], dpi: int = 140) -> None:
    """Writes a figure as PNG; a path is written atomically."""
    # One layout; savefig would compute it twice.
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    if not isinstance(path, (str, os.PathLike)):
        figure.savefig(path, format="png", dpi=dpi)
        return
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def new_figure(width: float, height: float) -> Any:
    """A figure that needs neither a window system nor the global state of pyplot."""
    figure_class = import_optional("matplotlib.figure", "drawing pictures").Figure
    import_optional("matplotlib.backends.backend_agg", "drawing pictures").FigureCanvasAgg(
        figure := figure_class(figsize=(width, height), layout="constrained")
    )
    return figure
