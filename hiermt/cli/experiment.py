"""From a table of features to a trained model and its decisions, for demo, train, predict and evaluate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import data
from hiermt.cli import evaluation, plain
from hiermt.cli.epochs import Epochs
from hiermt.cli.kinds import Kind, model_of, true_classes
from hiermt.cli.settings import Settings
from hiermt.data import DataError, FeatureTable, Scale, Split, WindowDataset, WindowLoader
from hiermt.training import adam, train

EVALUATION_BATCH = 128


@dataclass
class Experiment:
    """Features split in time and scaled, with labels and a graph, ready for training."""

    table: FeatureTable
    settings: Settings
    split: Split
    scale: Scale
    dataset: WindowDataset
    kind: Kind
    losses: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        table: FeatureTable,
        settings: Settings,
        *,
        edges: tuple[Tensor, Tensor] | None = None,
        sectors: dict[str, str] | None = None,
        device: torch.device | str = "cpu",
        split: Split | None = None,
    ) -> Experiment:
        """Splits in time order, unless a split is given; fits scale and graph on the training days only.

        Raises:
            DataError: the table does not fit the settings, or a part of the split has no label.
        """
        split = split or data.time_split(
            table.num_days,
            settings.window,
            horizon=settings.horizon,
            validation=settings.validation,
            test=settings.test,
        )
        present = table.present
        if present is not None:
            _check_labels(table, settings, split)
        if edges is None:
            returns = data.next_returns(table.close)[:, : split.train_days - 1]
            edges = data.correlation_graph(
                returns,
                settings.correlation,
                sectors=None if sectors is None else data.sectors_of(table.symbols, sectors),
                sector_bonus=settings.sector_bonus,
                present=None if present is None else returns.isfinite(),
            )
        known = None if present is None else present[:, : split.train_days]
        scale = Scale.fit(table.values[:, : split.train_days], table.names, known)
        dataset = WindowDataset.from_table(
            table,
            *edges,
            settings.window,
            scale=scale,
            threshold=settings.threshold,
            horizon=settings.horizon,
        )
        kind = Kind.of(table, settings, split.train_days)
        targets = {**(dataset.targets or {}), **kind.targets(table, settings)}
        dataset = dataclasses.replace(dataset, targets=targets or None)
        return cls(table, settings, split, scale, dataset.to(device), kind)

    @property
    def classes(self) -> Tensor:
        """The true class of each stock and day, ``[S, L]``: 0 Down, 1 Neutral, 2 Up, and -1 where there is none."""
        return true_classes(self.table, self.settings.horizon, self.settings.threshold)

    def labels_of(self, starts: range) -> Tensor:
        """The true class at the end of each window, ``[W, S]``."""
        ends = torch.arange(starts.start, starts.stop, dtype=torch.int64, device="cpu") + self.settings.window - 1
        return self.classes[:, ends].t()

    def returns_of(self, starts: range) -> Tensor:
        """The return that the label of each window reads, ``[W, S]`` float64."""
        first = starts.start + self.settings.window - 1
        returns = data.next_returns(self.table.close, self.settings.horizon)
        return returns[:, first : first + len(starts)].t()

    def dates_of(self, starts: range) -> Any:
        """The last day of each window."""
        first = starts.start + self.settings.window - 1
        return self.table.dates[first : first + len(starts)]

    def balance(self) -> dict[str, Any]:
        """Class of every labelled day and stock, with the days and the spans, for a picture over time."""
        classes = self.classes
        spans = {name: getattr(self.split, name) for name in ("train", "validation", "test")}
        return {
            "dates": self.table.dates[: classes.size(1)],
            "classes": classes.numpy(),
            "spans": {name: self.dates_of(part)[[0, -1]] for name, part in spans.items() if part},
        }

    def loader(self, part: range, *, shuffle: bool = False) -> WindowLoader:
        """A loader over one part of the split."""
        size = self.settings.batch_size if shuffle else EVALUATION_BATCH
        return WindowLoader(self.dataset, part, size, shuffle, seed=self.settings.seed)

    def model(self, backend: str = "auto") -> Any:
        """A new model on the device of the data, its weights drawn with the seed of the settings."""
        torch.manual_seed(self.settings.seed)
        return model_of(self.settings, self.table.names, backend).to(self.dataset.series.device)

    def decide(self, model: Any, starts: range, *, progress: bool = False) -> Any:
        """Results of the model for consecutive windows; see :meth:`hiermt.cli.kinds.Kind.decide`."""
        return self.kind.decide(model, self.dataset, starts, self.settings.confidence, progress=progress)

    def measure(self, results: Any, starts: range) -> dict[str, Any]:
        """Figures of the results of consecutive windows.

        Raises:
            DataError: no window has a stock with a label.
        """
        of = self.settings
        found = (results, self.labels_of(starts), self.returns_of(starts), self.dates_of(starts))
        return measure(self.kind.name, *found, self.table.symbols, of.horizon, of.threshold)

    def train(self, model: nn.Module, *, show: bool = True, **options: Any) -> int:
        """Trains until the validation loss stops falling; keeps the best weights.

        Args:
            model (Module): on the device of the dataset.
            show (bool): show a bar or a line an epoch. (default: ``True``)
            options: passed on to :func:`hiermt.train`.

        Returns:
            Number of epochs trained, including those before a checkpoint.
        """
        settings = self.settings
        watched = self.loader(self.split.validation) if self.split.validation else None
        with Epochs(settings.epochs, show) as epochs:
            train(
                model,
                adam(model, settings.learning_rate),
                self.kind.task(),
                self.loader(self.split.train, shuffle=True),
                watched,
                num_epochs=settings.epochs,
                device=self.dataset.series.device,
                callback=epochs,
                patience=settings.patience if watched is not None else None,
                progress=False,
                **options,
            )
        self.losses = epochs.losses
        return epochs.count

    def base_rates(self) -> dict[str, dict[str, float]]:
        """Share of signals, and of Up among them, in each part of the split; no share where there is no case."""
        rates: dict[str, dict[str, float]] = {}
        for name in ("train", "validation", "test"):
            truth = self.labels_of(getattr(self.split, name))
            truth = truth[truth >= 0]
            if truth.numel():
                moved = truth != 1
                rates[name] = {"signal": float(moved.double().mean())}
                if bool(moved.any()):
                    rates[name]["up"] = float((truth[moved] == 2).double().mean())
        return rates

    def describe(self) -> dict[str, Any]:
        """The data part of ``config.json``: what ``predict`` needs besides the model."""
        source, target = self.dataset.edge_index.tolist()
        weights = self.dataset.edge_weight
        return {
            "symbols": list(self.table.symbols),
            "features": list(self.table.names),
            "window": self.settings.window,
            "horizon": self.settings.horizon,
            "threshold": self.settings.threshold,
            "confidence": self.settings.confidence,
            "task": self.kind.describe(),
            "scale": {"mean": self.scale.mean.tolist(), "deviation": self.scale.deviation.tolist()},
            "graph": {
                "source": source,
                "target": target,
                "weight": None if weights is None else weights.tolist(),
            },
            "trained_on": [str(self.table.dates[0]), str(self.table.dates[self.split.train_days - 1])],
            "used_until": str(self.table.dates[self.split.used_days - 1]),
        }


def measure(
    task: str,
    results: Any,
    truth: Tensor,
    returns: Tensor,
    dates: Any,
    symbols: Sequence[str],
    horizon: int,
    threshold: float,
) -> dict[str, Any]:
    """Figures of results, by the task that made them.

    Args:
        task (str): a name of :mod:`hiermt.cli.kinds`.
        results (Decisions or dict): of :meth:`hiermt.cli.kinds.Kind.decide`.
        truth, returns (Tensor): true classes and returns, ``[W, S]``.
        dates, symbols (sequence): last days of the windows; names of the stocks.
        horizon (int): trading days of a return.
        threshold (float): a return above it is a move.

    Raises:
        DataError: no window has a stock with a label.
    """
    if Kind(task).decides:
        return evaluation.evaluate(results, truth, returns, dates, symbols, horizon, task)
    return plain.measure(task, results, returns, dates, symbols, horizon, threshold)


def _check_labels(table: FeatureTable, settings: Settings, split: Split) -> None:
    """Refuses a part without a label, whose loss would be 0: the lowest, for which the first weights would be kept."""
    classes = true_classes(table, settings.horizon, settings.threshold)
    for name in ("train", "validation", "test"):
        part: range = getattr(split, name)
        days = slice(part.start + settings.window - 1, part.stop + settings.window - 1)
        if part and not bool((classes[:, days] >= 0).any()):
            first, last = table.dates[days][[0, -1]]
            raise DataError(
                f"table: no stock is present on a day with a label in the {name} windows, {first} to {last}; give more "
                "days, or more prices"
            )
