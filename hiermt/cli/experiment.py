"""From a table of features to a trained model and its decisions, for demo, train, predict and evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hiermt import data
from hiermt.cli.epochs import Epochs
from hiermt.cli.settings import Settings
from hiermt.data import FeatureTable, Scale, Split, WindowDataset, WindowLoader
from hiermt.inference.rolling import Decisions, predict_rolling
from hiermt.nn import TGCN_HierarchicalMT
from hiermt.training import adam, train_hierarchical

EVALUATION_BATCH = 128


@dataclass
class Experiment:
    """Features split in time and scaled, with labels and a graph, ready for training."""

    table: FeatureTable
    settings: Settings
    split: Split
    scale: Scale
    dataset: WindowDataset
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
        """Splits in time order, unless a split is given; fits scale and graph on the training days only."""
        split = split or data.time_split(
            table.num_days,
            settings.window,
            horizon=settings.horizon,
            validation=settings.validation,
            test=settings.test,
        )
        present = table.present
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
        return cls(table, settings, split, scale, dataset.to(device))

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

    def model(self, backend: str = "auto") -> TGCN_HierarchicalMT:
        """A new model on the device of the data, its weights drawn with the seed of the settings."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        model = TGCN_HierarchicalMT(
            len(self.table.names),
            settings.hidden,
            settings.layers,
            use_gat=not settings.gcn,
            layout="NTF",
            feature_names=self.table.names,
            backend=backend,
        )
        return model.to(self.dataset.series.device)

    def train(self, model: TGCN_HierarchicalMT, *, show: bool = True, **options: Any) -> int:
        """Trains until the validation loss stops falling; keeps the best weights.

        Args:
            model (TGCN_HierarchicalMT): on the device of the dataset.
            show (bool): show a bar or a line an epoch. (default: ``True``)
            options: passed on to :func:`hiermt.train_hierarchical`.

        Returns:
            Number of epochs trained, including those before a checkpoint.
        """
        settings = self.settings
        watched = self.loader(self.split.validation) if self.split.validation else None
        with Epochs(settings.epochs, show) as epochs:
            train_hierarchical(
                model,
                adam(model, settings.learning_rate),
                None,
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
            "scale": {"mean": self.scale.mean.tolist(), "deviation": self.scale.deviation.tolist()},
            "graph": {
                "source": source,
                "target": target,
                "weight": None if weights is None else weights.tolist(),
            },
            "trained_on": [str(self.table.dates[0]), str(self.table.dates[self.split.train_days - 1])],
            "used_until": str(self.table.dates[self.split.used_days - 1]),
        }


def true_classes(table: FeatureTable, horizon: int, threshold: float) -> Tensor:
    """The class of each stock and day, ``[S, L]``: 0 Down, 1 Neutral, 2 Up; -1 if absent, or without a later price."""
    returns = data.next_returns(table.close, horizon)
    if table.present is None:
        return data.three_classes(*data.hierarchical_labels(returns, threshold))
    there = returns.isfinite() & table.present[:, : returns.size(1)]
    classes = data.three_classes(*data.hierarchical_labels(returns.where(there, 0.0), threshold))
    return classes.masked_fill(~there, -1)


def decide(
    model: TGCN_HierarchicalMT, dataset: WindowDataset, starts: range, confidence: float, *, progress: bool = False
) -> Decisions:
    """Decisions for consecutive windows, on the CPU."""
    days = slice(starts.start, starts.stop + dataset.window - 1)
    decisions = predict_rolling(
        model,
        dataset.series[:, days],
        dataset.graph,
        dataset.window,
        threshold=confidence,
        progress=progress,
        feature_names=dataset.feature_names,
        present=None if dataset.present is None else dataset.present[:, days],
    )
    return Decisions(*(part.cpu() for part in decisions))
