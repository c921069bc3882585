"""The files of a training: complete and of one piece, or not there at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hiermt import report
from hiermt._files import replacing
from hiermt.checkpoint import CONFIG, WEIGHTS, read_config
from hiermt.cli.experiment import Experiment, fingerprint
from hiermt.data import CLASSES, DataError, next_returns
from hiermt.nn import TGCN_HierarchicalMT
from hiermt.rolling import Decisions

METRICS, PREDICTIONS, CURVES, CONFUSION = "metrics.json", "predictions.csv", "curves.png", "confusion.png"
HEADER = ("date", "symbol", "prediction", "confidence", "p_signal", "p_up")


def check_folder(folder: Path) -> None:
    """Makes the folder now, so that a training of an hour does not end with one that cannot be written.

    Raises:
        DataError: it is a file, or cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder}: is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise DataError(f"--out {folder}: cannot be written; give another folder")


def write_artefacts(
    folder: Path,
    experiment: Experiment,
    model: TGCN_HierarchicalMT,
    scores: dict[str, Any],
    decisions: Decisions,
    facts: dict[str, Any],
) -> list[Path]:
    """Writes model, configuration, metrics, predictions and pictures.

    Everything is first written into a folder beside, flushed, and then moved into place, so that a crash, a full disk
    or Ctrl-C leaves what was there.

    Args:
        folder (Path): where to.
        experiment (Experiment): what was trained on.
        model (TGCN_HierarchicalMT): the trained model.
        scores (dict): of the test span.
        decisions (Decisions): of the test span.
        facts (dict): what else belongs into ``metrics.json``.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    try:
        model.save_pretrained(stage)
        config = read_config(stage)
        config["data"] = {**experiment.describe(), "weights_sha256": fingerprint(stage / WEIGHTS)}
        _write_json(stage / CONFIG, config)
        _write_json(stage / METRICS, {"test": scores, "losses": experiment.losses, **facts})
        _write_test_predictions(stage / PREDICTIONS, experiment, decisions)
        report.draw_curves(experiment.losses, stage / CURVES)
        report.draw_confusion(scores, stage / CONFUSION, _span(experiment))
        names = (WEIGHTS, CONFIG, METRICS, PREDICTIONS, CURVES, CONFUSION)
        for name in names:
            with open(stage / name, "rb") as file:
                os.fsync(file.fileno())
        for name in names:
            os.replace(stage / name, folder / name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return [folder / name for name in names]


def write_predictions(path: Path, rows: Iterable[tuple[Any, ...]], header: tuple[str, ...] = HEADER) -> None:
    """Writes a CSV that takes its place only when it is complete."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def prediction_rows(dates: Any, symbols: tuple[str, ...], decisions: Decisions) -> Iterable[tuple[Any, ...]]:
    """One row per window and stock; `dates` are the last days of the windows."""
    predictions, confidences = decisions.predictions.tolist(), decisions.confidences.tolist()
    probabilities = decisions.probabilities.tolist()
    for w, date in enumerate(dates):
        for s, symbol in enumerate(symbols):
            _, signal, _, up = probabilities[w][s]
            yield date, symbol, CLASSES[predictions[w][s]], f"{confidences[w][s]:.4f}", f"{signal:.4f}", f"{up:.4f}"


def _write_test_predictions(path: Path, experiment: Experiment, decisions: Decisions) -> None:
    test, settings = experiment.split.test, experiment.settings
    ends = range(test.start + settings.window - 1, test.stop + settings.window - 1)
    dates = experiment.table.dates[ends.start : ends.stop]
    truth = experiment.labels_of(test).flatten().tolist()
    returns = next_returns(experiment.table.close, settings.horizon)[:, ends.start : ends.stop].t().flatten().tolist()
    rows = (
        (*row, CLASSES[label], f"{value:.6f}")
        for row, label, value in zip(
            prediction_rows(dates, experiment.table.symbols, decisions), truth, returns, strict=True
        )
    )
    write_predictions(path, rows, (*HEADER, "actual", "return"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _span(experiment: Experiment) -> str:
    test, dates, window = experiment.split.test, experiment.table.dates, experiment.settings.window
    return (
        f"Test span {dates[test.start + window - 1]} to {dates[test.stop + window - 2]}, "
        f"{len(experiment.table.symbols)} stocks. Shares are of the true class; counts below."
    )
