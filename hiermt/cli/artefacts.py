"""The files of a training, written all together or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from hiermt.cli import attention, pictures, plain, report, scores
from hiermt.cli.experiment import Experiment
from hiermt.cli.forecasts import base_losses
from hiermt.cli.record import fingerprint
from hiermt.data import CLASSES, DataError
from hiermt.inference.rolling import Decisions
from hiermt.io.checkpoint import CONFIG, WEIGHTS, to_json
from hiermt.io.files import atomic_write, atomic_write_all, check_writable
from hiermt.io.tensor_files import write_tensors
from hiermt.training.tasks.absent import ABSENT

METRICS, PREDICTIONS, CURVES, CONFUSION = "metrics.json", "predictions.csv", "curves.png", "confusion.png"
RECORD, REPORT = "run.json", "report.html"
FILES = (WEIGHTS, CONFIG, METRICS, PREDICTIONS, CURVES, CONFUSION, RECORD, REPORT)
EVALUATION_FILES = (METRICS, PREDICTIONS, CONFUSION, REPORT)
HEADER: tuple[str, ...] = (
    "date",
    "symbol",
    "prediction",
    "confidence",
    "p_down",
    "p_neutral",
    "p_up",
    "p_signal",
    "p_up_if_signal",
)


def check_folder(folder: Path, names: tuple[str, ...] = FILES) -> None:
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
    except (NotADirectoryError, PermissionError) as error:
        raise DataError(f"--out {folder}: cannot be made ({error.strerror}); give another folder") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"--out {folder}: is not writable; give another folder")
    check_writable(*(folder / name for name in names))


def write_artefacts(
    folder: Path,
    experiment: Experiment,
    model: Any,
    scored: dict[str, Any],
    decisions: Any,
    facts: dict[str, Any],
    record: dict[str, Any],
) -> list[Path]:
    """Writes model, configuration, metrics, predictions, pictures, report and record of a training.

    All files are complete on the disk before the first replaces an old one, so that after a crash, a full disk or
    Ctrl-C the old files are intact.

    Args:
        folder (Path): the target.
        experiment (Experiment): data and settings of the training.
        model (Module): the trained model.
        scored (dict): of the test span, from :func:`hiermt.cli.evaluation.evaluate` or
            :func:`hiermt.cli.plain.measure`.
        decisions (Decisions or dict): of the test span, or the results of a task that decides nothing.
        facts (dict): further entries of ``metrics.json``.
        record (dict): content of ``run.json``.

    Returns:
        The paths of the files.
    """
    rates, kind = experiment.base_rates(), experiment.kind
    base = {name: base_losses(rate) for name, rate in rates.items()} if kind.name == "two-headed" else {}
    content = model.content()
    metrics = {"test": scored, "losses": experiment.losses, "base_rates": rates, "base_losses": base, **facts}
    curves = report.png(lambda file: pictures.draw_curves(experiment.losses, file, base))
    test, symbols = experiment.split.test, experiment.table.symbols
    dates, returns = experiment.dates_of(test), experiment.returns_of(test)
    confusion = b""
    if kind.decides:
        confusion = report.png(lambda file: pictures.draw_confusion(scored, file, scores.span(scored)))
        page = report.Report(
            title="Training",
            scores=scored,
            facts=facts,
            curves=curves,
            confusion=confusion,
            symbols=symbols,
            dates=[str(date) for date in dates],
            graph=experiment.dataset,
            attention=attention.mean_attention(model, experiment.dataset, test),
            balance=experiment.balance(),
            record=record,
        ).html()
        rows = scored_rows(dates, symbols, decisions, experiment.labels_of(test), returns)
        header: tuple[str, ...] = (*HEADER, "actual", "return")
    else:
        page = plain.page("Training", scored, facts, curves, record)
        rows = plain.rows(kind.name, dates, symbols, decisions, returns)
        header = (*plain.HEADERS[kind.name], "return")

    def write_config(path: Path) -> None:
        description = {**experiment.describe(), "weights_sha256": fingerprint(written[WEIGHTS])}
        path.write_text(to_json({**content.config, "data": description}), encoding="utf-8")

    writers: dict[str, Callable[[Path], object]] = {
        WEIGHTS: lambda path: write_tensors(path, content.state, content.metadata),
        CONFIG: write_config,
        METRICS: lambda path: path.write_text(to_json(metrics), encoding="utf-8"),
        PREDICTIONS: lambda path: _write_rows(path, rows, header),
        CURVES: lambda path: path.write_bytes(curves),
        CONFUSION: lambda path: path.write_bytes(confusion),
        RECORD: lambda path: path.write_text(to_json(record), encoding="utf-8"),
        REPORT: lambda path: path.write_text(page, encoding="utf-8"),
    }
    names = [name for name in FILES if name != CONFUSION or kind.decides]
    files = [folder / name for name in names]
    with atomic_write_all(files) as temporaries:
        written = dict(zip(names, temporaries, strict=True))
        for name in writers.keys() & set(names) - {CONFIG}:
            writers[name](written[name])
        # Last, as it holds the hash of the weights.
        writers[CONFIG](written[CONFIG])
    if not kind.decides:  # one of a training before would seem to be of this one
        (folder / CONFUSION).unlink(missing_ok=True)
    return files


def write_evaluation(
    folder: Path, page: report.Report, metrics: dict[str, Any], rows: Iterable[tuple[Any, ...]]
) -> list[Path]:
    """Writes metrics, predictions, confusion and report of an evaluation, all together or not at all."""
    files = [folder / name for name in EVALUATION_FILES]
    with atomic_write_all(files) as (numbers, predictions, confusion, html):
        numbers.write_text(to_json(metrics), encoding="utf-8")
        _write_rows(predictions, rows, (*HEADER, "actual", "return"))
        confusion.write_bytes(page.confusion)
        html.write_text(page.html(), encoding="utf-8")
    return files


def write_plain_evaluation(
    folder: Path, name: str, page: str, metrics: dict[str, Any], rows: Iterable[tuple[Any, ...]]
) -> list[Path]:
    """The same for a task that decides nothing, ``"binary"`` or ``"regression"``; there is no confusion."""
    files = [folder / METRICS, folder / PREDICTIONS, folder / REPORT]
    with atomic_write_all(files) as (numbers, predictions, html):
        numbers.write_text(to_json(metrics), encoding="utf-8")
        _write_rows(predictions, rows, (*plain.HEADERS[name], "return"))
        html.write_text(page, encoding="utf-8")
    (folder / CONFUSION).unlink(missing_ok=True)
    return files


def write_predictions(path: Path, rows: Iterable[tuple[Any, ...]], header: tuple[str, ...] = HEADER) -> None:
    """Writes a CSV atomically: an old one stays until the new one is complete."""
    with atomic_write(path) as temporary:
        _write_rows(temporary, rows, header)


def prediction_rows(dates: Any, symbols: tuple[str, ...], decisions: Decisions) -> Iterable[tuple[Any, ...]]:
    """One row of `HEADER` per window and stock that is present; `dates` are the last days of the windows."""
    return (row for _, row in _placed_rows(dates, symbols, decisions))


def _placed_rows(
    dates: Any, symbols: tuple[str, ...], decisions: Decisions
) -> Iterable[tuple[tuple[int, int], tuple[Any, ...]]]:
    predictions, confidences = decisions.predictions.tolist(), decisions.confidences.tolist()
    classes, heads = decisions.classes.tolist(), decisions.probabilities.tolist()
    for w, date in enumerate(dates):
        for s, symbol in enumerate(symbols):
            if predictions[w][s] == ABSENT:
                continue
            numbers = (confidences[w][s], *classes[w][s], heads[w][s][1], heads[w][s][3])
            yield (w, s), (date, symbol, CLASSES[predictions[w][s]], *(f"{number:.4f}" for number in numbers))


def scored_rows(
    dates: Any, symbols: tuple[str, ...], decisions: Decisions, truth: Tensor, returns: Tensor
) -> Iterable[tuple[Any, ...]]:
    """The same with the true class and the return, each ``[W, S]``; both are empty where there is no later price."""
    labels, values = truth.tolist(), returns.tolist()
    for (w, s), row in _placed_rows(dates, symbols, decisions):
        known = labels[w][s] >= 0
        yield *row, CLASSES[labels[w][s]] if known else "", f"{values[w][s]:.6f}" if known else ""


def _write_rows(path: Path, rows: Iterable[tuple[Any, ...]], header: tuple[str, ...]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
