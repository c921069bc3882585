"""Walk-forward evaluation: one training for each of several spans, each on the days before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from hiermt.cli import output
from hiermt.cli.experiment import Experiment
from hiermt.cli.output import log
from hiermt.cli.settings import Settings
from hiermt.data import DataError, FeatureTable, Split
from hiermt.data.optional import import_optional
from hiermt.inference.rolling import Decisions


class Result(NamedTuple):
    """Scores of each fold, and results, classes, returns and dates of all folds together.

    The results are :class:`hiermt.inference.rolling.Decisions`, or the dict of a task that decides nothing.
    """

    folds: list[dict[str, Any]]
    results: Any
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


def run(
    table: FeatureTable, settings: Settings, folds: int, device: torch.device, backend: str, **prepare: Any
) -> Result:
    """Trains and measures each fold.

    Raises:
        ValueError: the task does not fit the network.
        DataError: the history is too short for this number of folds, or a span has no label.
    """
    found: list[dict[str, Any]] = []
    results: list[Any] = []
    labels: list[tuple[torch.Tensor, torch.Tensor]] = []
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
        results.append(experiment.decide(model, split.test, progress=True))
        scored = experiment.measure(results[-1], split.test)
        found.append({"fold": i + 1, "train_windows": len(split.train), "epochs": epochs, **scored})
        labels.append((experiment.labels_of(split.test), experiment.returns_of(split.test)))
        dates += [str(date) for date in experiment.dates_of(split.test)]
    truth, returns = (torch.cat(part) for part in zip(*labels, strict=True))
    return Result(found, _joined(results), truth, returns, dates)


def _joined(results: list[Any]) -> Any:
    """The results of consecutive spans as those of one."""
    if isinstance(results[0], Decisions):
        return Decisions(*(torch.cat(part) for part in zip(*results, strict=True)))
    return {name: torch.cat([one[name] for one in results]) for name in results[0]}


def table_of(folds: list[dict[str, Any]]) -> str:
    """One row for each fold."""
    columns, cells = _FIGURES.get(folds[0]["task"], _DECISIONS)
    rows = [
        [
            str(fold["fold"]),
            f"{fold['span']['first']} to {fold['span']['last']}",
            *cells(fold),
            _or_blank(fold["information_coefficient"]["mean"], "+.4f"),
        ]
        for fold in folds
    ]
    return output.table(("fold", "test span", *columns, "IC"), rows, left=2)


def _of_decisions(fold: dict[str, Any]) -> list[str]:
    decision, forecast = fold["decision"], fold["decision"]["forecast"]
    return [
        f"{decision['accuracy']:.1%}",
        f"{decision['majority_accuracy']:.1%}",
        f"{forecast['log_loss']:.4f}",
        f"{forecast['base_log_loss']:.4f}",
        *(_or_blank(fold[head]["forecast"].get("auc"), ".3f") for head in ("signal", "direction")),
    ]


def _of_binary(fold: dict[str, Any]) -> list[str]:
    forecast = fold["forecast"]
    return [
        f"{fold['accuracy']:.1%}",
        f"{fold['base_accuracy']:.1%}",
        f"{forecast['log_loss']:.4f}",
        f"{forecast['base_log_loss']:.4f}",
        _or_blank(forecast.get("auc"), ".3f"),
    ]


def _of_regression(fold: dict[str, Any]) -> list[str]:
    return [f"{fold[key]:.6f}" for key in ("mae", "base_mae", "rmse", "base_rmse")]


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


# Columns, and their cells of a fold, by task.
_Figures = tuple[tuple[str, ...], Callable[[dict[str, Any]], list[str]]]
_PROBABLE = ("accuracy", "majority", "log loss", "base rate")
_DECISIONS: _Figures = ((*_PROBABLE, "signal AUC", "direction AUC"), _of_decisions)
_FIGURES: dict[str, _Figures] = {
    "binary": ((*_PROBABLE, "AUC"), _of_binary),
    "regression": (("MAE", "base MAE", "RMSE", "base RMSE"), _of_regression),
}
