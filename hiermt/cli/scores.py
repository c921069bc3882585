"""Scores of a trained model, as numbers, as a table and in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hiermt.cli import output
from hiermt.data import CLASSES
from hiermt.data.optional import import_optional

Labels = npt.NDArray[np.int64]

NOISE_SIGNAL, DOWN_UP = ("Noise", "Signal"), ("Down", "Up")


def evaluate(predictions: Tensor, probabilities: Tensor, truth: Tensor) -> dict[str, Any]:
    """Scores the decisions of a model against a constant answer, the most frequent true class.

    The class is the most frequent one of `truth` itself, so no constant answer has a higher accuracy.

    Args:
        predictions (Tensor): 0 Down, 1 Neutral, 2 Up.
        probabilities (Tensor): noise, signal, down, up.
        truth (Tensor): true classes; -1 does not count.

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
    counted = true >= 0
    moved = counted & (true != 1)
    return {
        "decision": _score(true, chosen, CLASSES, where=counted),
        "signal": _score(moved.astype(np.int64), signal.astype(np.int64), NOISE_SIGNAL, where=counted),
        "direction": _score(true // 2, up.astype(np.int64), DOWN_UP, where=moved),
    }


def _score(
    true: Labels,
    chosen: Labels,
    classes: tuple[str, ...],
    where: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    metrics = import_optional("sklearn.metrics", "measuring a model")
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


def table(scores: dict[str, Any], wide: int | None = None) -> str:
    """The scores of :func:`evaluate` as a table of text, `wide` columns at most."""
    return output.table(*rows(scores), wide=wide)


def rows(scores: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and rows of the table."""
    names = {
        "decision": "Down / Neutral / Up",
        "signal": "Noise / Signal",
        "direction": "Down / Up, where it moved",
    }
    found = []
    for key, name in names.items():
        score = scores[key]
        if not score["count"]:
            found.append([name, "0", *[""] * 5])
            continue
        majority = f"{score['majority_accuracy']:.1%} ({score['majority']})"
        error = "" if score["gain_error"] is None else f" ± {100 * score['gain_error']:.1f}"
        gain = f"{100 * score['gain']:+.1f}{error} pt"
        cells = [f"{score['count']:,}", f"{score['accuracy']:.1%}", majority, gain]
        found.append([name, *cells, f"{score['balanced_accuracy']:.1%}", f"{score['macro_f1']:.3f}"])
    return ("", "cases", "accuracy", "majority", "gain", "balanced", "macro F1"), found


def verdict(scores: dict[str, Any]) -> str:
    """One sentence per score; a gain within two standard errors counts as none."""
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


def span(scores: dict[str, Any]) -> str:
    """One line on the days and stocks that were scored."""
    found = scores["span"]
    return f"{found['first']} to {found['last']}, {found['stocks']} stocks. Shares are of the true class; counts below."
