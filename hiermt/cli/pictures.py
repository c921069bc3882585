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
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def draw_curves(losses: Mapping[str, Sequence[float | None]], path: Path | IO[bytes]) -> None:
    """Draws the loss curves.

    Args:
        losses (dict): lists ``train_*`` and optionally ``test_*`` with one value per epoch, named as in the metrics of
            the training loop; ``test_*`` is drawn as validation.
        path (Path or file): the target; a path is written atomically.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written; an old one is intact.
    """
    figure = _figure(10, 3.8)
    titles = {"total_loss": "Total loss", "signal_loss": "Signal head", "direction_loss": "Direction head"}
    for i, (name, title) in enumerate(titles.items()):
        axes = figure.add_subplot(1, 3, i + 1)
        train, held = losses.get(f"train_{name}", []), losses.get(f"test_{name}", [])
        epochs = range(1, len(train) + 1)
        axes.plot(epochs, np.array(train, dtype=np.float64), color=_BLUE, marker="o", markersize=3, label="training")
        if held:
            axes.plot(
                epochs, np.array(held, dtype=np.float64), color=_ORANGE, marker="o", markersize=3, label="validation"
            )
            if name == "total_loss":
                best = int(np.argmin(np.array(held, dtype=np.float64)))
                axes.axvline(best + 1, color=_GREY, linewidth=1, linestyle=":", label=f"kept: epoch {best + 1}")
        if name != "total_loss":
            axes.axhline(np.log(2), color=_GREY, linewidth=1, linestyle="--", label="coin flip, ln 2")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("cross entropy" if i == 0 else "")
        axes.grid(alpha=0.25)
    named = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    _save(figure, path)


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
    figure = _figure(11, 4.3)
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
    figure.supxlabel(note or "Shares are of the true class; counts below.", fontsize=8, color=_GREY)
    _save(figure, path)


def _save(figure: Any, path: Path | IO[bytes]) -> None:
    if not isinstance(path, (str, os.PathLike)):
        figure.savefig(path, format="png", dpi=140)
        return
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)


def _figure(width: float, height: float) -> Any:
    """A figure that needs neither a window system nor the global state of pyplot."""
    figure_class = import_optional("matplotlib.figure", "drawing pictures").Figure
    import_optional("matplotlib.backends.backend_agg", "drawing pictures").FigureCanvasAgg(
        figure := figure_class(figsize=(width, height), layout="constrained")
    )
    return figure
