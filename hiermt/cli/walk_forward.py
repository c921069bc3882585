"""Walk-forward evaluation: one training for each of several spans, each on the days before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from hiermt.cli import evaluation, output
from hiermt.cli.experiment import Experiment
from hiermt.cli.kinds import task_name
from hiermt.cli.output import log
from hiermt.cli.settings import Settings
from hiermt.data import DataError, FeatureTable, Split
from hiermt.data.optional import import_optional
from hiermt.inference.rolling import Decisions


class Result(NamedTuple):
    """Scores of each fold, and decisions, classes, returns and dates of all folds together."""

    folds: list[dict[str, Any]]
    decisions: Decisions
    truth: torch.Tensor
    returns: torch.Tensor
    dates: list[str]


def splits(num_days: int, settings: Settings, folds: int) -> Iterator[Split]:
    """The spans of ``sklearn.model_selection.TimeSeriesSplit`` with a gap of the horizon.

    A label reads the price `horizon` days after its window. With this gap every label of the training and validation
    windows is known on the last day of the first test window. The last windows before the gap, a share of
    ``settings.validation``, choose the epoch; the same gap lies between them and the training windows.

    Raises:
        DataError: the history is too short for this number of folds.
    """
    gap = settings.horizon
    windows = num_days - settings.window - settings.horizon + 1
    selection = import_optional("sklearn.model_selection", "evaluating walk-forward")
    try:
        parts = list(selection.TimeSeriesSplit(n_splits=folds, gap=gap).split(range(max(windows, 0))))
    except ValueError:
        parts = []
    for before, test in parts:
        validation = round(len(before) * settings.validation)
        train = len(before) - validation - (gap if validation else 0)
        if train < 1:
            parts = []
            break
        middle = range(len(before) - validation, len(before)) if validation else range(0)
        yield Split(range(train), middle, range(int(test[0]), int(test[-1]) + 1), settings.window, gap, gap)
    if not parts:
        raise DataError(
            f"--walk-forward {folds}: {num_days} days are too few for windows of {settings.window}; give fewer folds"
        )


def check(settings: Settings) -> None:
    """Refuses a task without decisions.

    Raises:
        ValueError: the task decides nothing, or does not fit the network.
    """
    name = task_name(settings)
    if name in ("binary", "regression"):
        raise ValueError(
            f"--walk-forward: measures decisions (Down, Neutral, Up), which the task {name} does not make; use --task "
            "classes"
        )


def run(
    table: FeatureTable, settings: Settings, folds: int, device: torch.device, backend: str, **prepare: Any
) -> Result:
    """Trains and decides for each fold; the task of the settings has to pass :func:`check`."""
    found: list[dict[str, Any]] = []
    parts: list[tuple[Any, ...]] = []
    dates: list[str] = []
    every = list(splits(table.num_days, settings, folds))
    for i, split in enumerate(every):
        experiment = Experiment.prepare(table, settings, split=split, device=device, **prepare)
        model = experiment.model(backend)
        log.info(
            "fold %d/%d: %s training windows, test %s to %s",
            i + 1,
            len(every),
            f"{len(split.train):,}",
            *experiment.dates_of(split.test)[[0, -1]],
        )
        epochs = experiment.train(model)
        decisions = experiment.decide(model, split.test, progress=True)
        truth, returns = experiment.labels_of(split.test), experiment.returns_of(split.test)
        days = [str(date) for date in experiment.dates_of(split.test)]
        scored = evaluation.evaluate(
            decisions, truth, returns, days, table.symbols, settings.horizon, experiment.kind.name
        )
        found.append({"fold": i + 1, "train_windows": len(split.train), "epochs": epochs, **scored})
        parts.append((*decisions, truth, returns))
        dates += days
    *columns, truth, returns = (torch.cat(column) for column in zip(*parts, strict=True))
    return Result(found, Decisions(*columns), truth, returns, dates)


def table_of(folds: list[dict[str, Any]]) -> str:
    """One row for each fold."""
    columns = (
        "fold",
        "test span",
        "accuracy",
        "majority",
        "log loss",
        "base rate",
        "signal AUC",
        "direction AUC",
        "IC",
    )
    rows = []
    for fold in folds:
        decision, forecast = fold["decision"], fold["decision"]["forecast"]
        areas = [fold[head]["forecast"].get("auc") for head in ("signal", "direction")]
        ic = fold["information_coefficient"]["mean"]
        rows.append(
            [
                str(fold["fold"]),
                f"{fold['span']['first']} to {fold['span']['last']}",
                f"{decision['accuracy']:.1%}",
                f"{decision['majority_accuracy']:.1%}",
                f"{forecast['log_loss']:.4f}",
                f"{forecast['base_log_loss']:.4f}",
                *("" if area is None else f"{area:.3f}" for area in areas),
                "" if ic is None else f"{ic:+.4f}",
            ]
        )
    return output.table(columns, rows, left=2)
