"""The files of a training, written all together or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hiermt.cli import pictures
from hiermt.cli.experiment import Experiment
from hiermt.cli.trained import fingerprint
from hiermt.data import CLASSES, DataError, next_returns
from hiermt.inference.rolling import Decisions
from hiermt.io.checkpoint import CONFIG, WEIGHTS, to_json
from hiermt.io.files import atomic_write, atomic_write_all, check_writable
from hiermt.io.tensor_files import write_tensors
from hiermt.nn import TGCN_HierarchicalMT

METRICS, PREDICTIONS, CURVES, CONFUSION = "metrics.json", "predictions.csv", "curves.png", "confusion.png"
FILES = (WEIGHTS, CONFIG, METRICS, PREDICTIONS, CURVES, CONFUSION)
HEADER = ("date", "symbol", "prediction", "confidence", "p_signal", "p_up")


def check_folder(folder: Path) -> None:
    """Makes the folder before the training, so that an unusable one is found at once and not at the end.

    Raises:
        DataError: it is a file, a broken link or not writable.
        OSError: one of the files cannot be replaced, such as a folder of the same name.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder}: is a file; give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DataError(f"--out {folder}: {error.filename} is a broken link; remove it") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"--out {folder}: is not writable; give another folder")
    check_writable(*(folder / name for name in FILES))


def write_artefacts(
    folder: Path,
    experiment: Experiment,
    model: TGCN_HierarchicalMT,
    scores: dict[str, Any],
    decisions: Decisions,
    facts: dict[str, Any],
) -> list[Path]:
    """Writes model, configuration, metrics, predictions and pictures.

    All files are complete on the disk before the first replaces an old one, so that after a crash, a full disk or
    Ctrl-C the old files are intact.

    Args:
        folder (Path): the target.
        experiment (Experiment): data and settings of the training.
        model (TGCN_HierarchicalMT): the trained model.
        scores (dict): of the test span.
        decisions (Decisions): of the test span.
        facts (dict): further entries of ``metrics.json``.

    Returns:
        The paths of the files.
    """
    files = [folder / name for name in FILES]
    with atomic_write_all(files) as (weights, config, metrics, predictions, curves, confusion):
        content = model.content()
        write_tensors(weights, content.state, content.metadata)
        description = {**experiment.describe(), "weights_sha256": fingerprint(weights)}
        config.write_text(to_json({**content.config, "data": description}), encoding="utf-8")
        metrics.write_text(to_json({"test": scores, "losses": experiment.losses, **facts}), encoding="utf-8")
        _write_rows(predictions, _test_rows(experiment, decisions), (*HEADER, "actual", "return"))
        with open(curves, "wb") as picture:
            pictures.draw_curves(experiment.losses, picture)
        with open(confusion, "wb") as picture:
            pictures.draw_confusion(scores, picture, _span(experiment))
    return files


def write_predictions(path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    """Writes a CSV atomically: an old one stays until the new one is complete."""
    with atomic_write(path) as temporary:
        _write_rows(temporary, rows, HEADER)


def prediction_rows(dates: Any, symbols: tuple[str, ...], decisions: Decisions) -> Iterable[tuple[Any, ...]]:
    """One row per window and stock; `dates` are the last days of the windows."""
    predictions, confidences = decisions.predictions.tolist(), decisions.confidences.tolist()
    probabilities = decisions.probabilities.tolist()
    for w, date in enumerate(dates):
        for s, symbol in enumerate(symbols):
            _, signal, _, up = probabilities[w][s]
            yield date, symbol, CLASSES[predictions[w][s]], f"{confidences[w][s]:.4f}", f"{signal:.4f}", f"{up:.4f}"


def _test_rows(experiment: Experiment, decisions: Decisions) -> Iterable[tuple[Any, ...]]:
    test, settings = experiment.split.test, experiment.settings
    ends = range(test.start + settings.window - 1, test.stop + settings.window - 1)
    dates = experiment.table.dates[ends.start : ends.stop]
    truth = experiment.labels_of(test).flatten().tolist()
    returns = next_returns(experiment.table.close, settings.horizon)[:, ends.start : ends.stop].t().flatten().tolist()
    rows = prediction_rows(dates, experiment.table.symbols, decisions)
    for row, label, value in zip(rows, truth, returns, strict=True):
        yield *row, CLASSES[label], f"{value:.6f}"


def _write_rows(path: Path, rows: Iterable[tuple[Any, ...]], header: tuple[str, ...]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _span(experiment: Experiment) -> str:
    test, dates, window = experiment.split.test, experiment.table.dates, experiment.settings.window
    return (
        f"Test span {dates[test.start + window - 1]} to {dates[test.stop + window - 2]}, "
        f"{len(experiment.table.symbols)} stocks. Shares are of the true class; counts below."
    )
