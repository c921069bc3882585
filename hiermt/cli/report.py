"""Figures of merit, tables and pictures of a trained model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hiermt.data import CLASSES
from hiermt.data._errors import import_optional
from hiermt.io.files import atomic_write

Labels = npt.NDArray[np.int64]

NOISE_SIGNAL, DOWN_UP = ("Noise", "Signal"), ("Down", "Up")

# Colours that stay apart for colour-blind readers and in print (Okabe and Ito).
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def evaluate(predictions: Tensor, probabilities: Tensor, truth: Tensor) -> dict[str, Any]:
    """Scores the decisions of a model, each beside the accuracy of always naming the most frequent true class.

    That class is looked up in `truth` itself, in hindsight, so no constant answer does better.

    Args:
        predictions (Tensor): 0 Down, 1 Neutral, 2 Up.
        probabilities (Tensor): noise, signal, down, up.
        truth (Tensor): true classes.

    Shapes:
        - **predictions**, **truth:** ``[W, S]``; **probabilities:** ``[W, S, 4]``
        - **returns:** ``{"decision", "signal", "direction"}``, each with ``accuracy``, ``majority_accuracy``,
          ``gain``, ``gain_error`` (one standard error, days counted as independent), ``balanced_accuracy``,
          ``macro_f1``, ``classes``, ``majority``, ``count`` and ``confusion`` (rows: true class)

    Raises:
        ImportError: scikit-learn is not installed.
    """
    true, chosen = truth.numpy(), predictions.numpy()
    signal, up = probabilities[..., 1].numpy() > 0.5, probabilities[..., 3].numpy() > probabilities[..., 2].numpy()
    moved = true != 1
    return {
        "decision": _score(true, chosen, CLASSES),
        "signal": _score(moved.astype(np.int64), signal.astype(np.int64), NOISE_SIGNAL),
        "direction": _score(true // 2, up.astype(np.int64), DOWN_UP, where=moved),
    }


def _score(
    true: Labels,
    chosen: Labels,
    classes: tuple[str, ...],
    where: npt.NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    metrics = import_optional("sklearn.metrics", "measuring a model")
    where = np.ones(true.shape, dtype=bool) if where is None else where
    indices = list(range(len(classes)))
    count = int(where.sum())
    if not count:
        return {"count": 0, "classes": list(classes)}
    flat_true, flat_chosen = true[where], chosen[where]
    majority = int(np.bincount(flat_true, minlength=len(classes)).argmax())
    better = np.where(where, (chosen == true).astype(np.int64) - (true == majority), 0).sum(axis=1)
    found = np.unique(flat_true)
    return {
        "count": count,
        "classes": list(classes),
        "accuracy": float(metrics.accuracy_score(flat_true, flat_chosen)),
        "majority": classes[majority],
        "majority_accuracy": float((flat_true == majority).mean()),
        "gain": float(better.sum() / count),
        "gain_error": float(better.std(ddof=1) * np.sqrt(len(better)) / count) if len(better) > 1 else None,
        "balanced_accuracy": float(metrics.recall_score(flat_true, flat_chosen, labels=found, average="macro")),
        "macro_f1": float(metrics.f1_score(flat_true, flat_chosen, labels=indices, average="macro", zero_division=0)),
        "confusion": metrics.confusion_matrix(flat_true, flat_chosen, labels=indices).tolist(),
    }


def table(scores: dict[str, Any]) -> str:
    """The scores of :func:`evaluate` as a table of text."""
    names = {
        "decision": "Down / Neutral / Up",
        "signal": "Noise / Signal",
        "direction": "Down / Up, where it moved",
    }
    head = f"{'':<26}{'cases':>9}{'accuracy':>10}{'majority':>18}{'gain':>16}{'balanced':>10}{'macro F1':>10}"
    lines = [head, "-" * len(head)]
    for key, name in names.items():
        score = scores[key]
        if not score["count"]:
            lines.append(f"{name:<26}{0:>9}")
            continue
        majority = f"{score['majority_accuracy']:.1%} ({score['majority']})"
        error = "" if score["gain_error"] is None else f" ± {100 * score['gain_error']:.1f}"
        gain = f"{100 * score['gain']:+.1f}{error} pt"
        lines.append(
            f"{name:<26}{score['count']:>9,}{score['accuracy']:>10.1%}{majority:>18}{gain:>16}"
            f"{score['balanced_accuracy']:>10.1%}{score['macro_f1']:>10.3f}"
        )
    return "\n".join(lines)


def verdict(scores: dict[str, Any]) -> str:
    """What the scores amount to, in words: beyond two standard errors counts as more than chance."""
    subjects = {"decision": "The decisions", "signal": "Noise or Signal", "direction": "Down or Up"}
    lines = []
    for key, subject in subjects.items():
        score = scores[key]
        if not score["count"]:
            continue
        constant = f"always saying {score['majority']}"
        gain, error = 100 * score["gain"], 100 * (score["gain_error"] or 0.0)
        by = f"{abs(gain):.1f} ± {error:.1f} points"
        if gain > 2 * error:
            lines.append(f"{subject}: better than {constant} by {by}.")
        elif gain < -2 * error:
            lines.append(f"{subject}: worse than {constant} by {by}.")
        else:
            lines.append(f"{subject}: no better than {constant} ({gain:+.1f} ± {error:.1f} points).")
    return "\n".join(lines)


def draw_curves(losses: Mapping[str, Sequence[float | None]], path: Path | IO[bytes]) -> None:
    """Draws the training curves into a PNG.

    Args:
        losses (dict): ``train_*`` and perhaps ``test_*`` lists, one value an epoch, as the training loop's callback
            gets them; ``test_*`` is drawn as validation.
        path (Path or file): where to; an open file is written to as it is.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written; the old one is intact.
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
    """Draws the confusion matrices of the decision and of both heads into a PNG.

    Args:
        scores (dict): what :func:`evaluate` returns.
        path (Path or file): where to; an open file is written to as it is.
        note (str): a line under the picture. (default: ``""``)

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written; the old one is intact.
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
    """A figure without a window system and without matplotlib's global state."""
    figure_class = import_optional("matplotlib.figure", "drawing pictures").Figure
    import_optional("matplotlib.backends.backend_agg", "drawing pictures").FigureCanvasAgg(
        figure := figure_class(figsize=(width, height), layout="constrained")
    )
    return figure
