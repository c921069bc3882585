"""From a table of features to a trained model and its decisions, for demo, train and predict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hiermt import data
from hiermt.data import FeatureTable, Scale, Split, WindowDataset, WindowLoader
from hiermt.inference.rolling import Decisions, predict_rolling
from hiermt.nn import TGCN_HierarchicalMT
from hiermt.training import adam, train_hierarchical

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Settings:
    """Settings of a training, except those of the model.

    Attributes:
        window (int): days in a window.
        horizon (int): trading days from a window to its label.
        threshold (float): absolute return above which a day is a signal.
        confidence (float): a decision is Down or Up only if ``P(signal)`` exceeds it.
        correlation (float): correlation of returns above which two stocks are neighbours.
        sector_bonus (float): added to the correlation of two stocks of one sector.
        validation, test (float): shares of the history.
        batch_size, epochs, patience, learning_rate, seed: of the training.
    """

    window: int = 25
    horizon: int = 1
    threshold: float = data.THRESHOLD
    confidence: float = 0.5
    correlation: float = 0.3
    sector_bonus: float = 0.1
    validation: float = 0.1
    test: float = 0.2
    batch_size: int = 32
    epochs: int = 30
    patience: int = 8
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass
class Experiment:
    """Features split in time and scaled, with labels and a graph, ready for training."""

    table: FeatureTable
    settings: Settings
    split: Split
    scale: Scale
    dataset: WindowDataset
    losses: dict[str, list[float | None]] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        table: FeatureTable,
        settings: Settings,
        *,
        edges: tuple[Tensor, Tensor] | None = None,
        sectors: dict[str, str] | None = None,
        device: torch.device | str = "cpu",
    ) -> Experiment:
        """Splits in time order; fits scale and graph on the training days only."""
        split = data.time_split(
            table.num_days,
            settings.window,
            horizon=settings.horizon,
            validation=settings.validation,
            test=settings.test,
        )
        if edges is None:
            edges = data.correlation_graph(
                data.next_returns(table.close)[:, : split.train_days - 1],
                settings.correlation,
                sectors=None if sectors is None else data.sectors_of(table.symbols, sectors),
                sector_bonus=settings.sector_bonus,
            )
        scale = Scale.fit(table.values[:, : split.train_days], table.names)
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
        """The true class of each stock and day, ``[S, L]``: 0 Down, 1 Neutral, 2 Up."""
        signal, direction = self.dataset.signal_labels, self.dataset.direction_labels
        assert signal is not None and direction is not None
        return data.three_classes(signal, direction).cpu()

    def labels_of(self, starts: range) -> Tensor:
        """The true class at the end of each window, ``[W, S]``."""
        ends = torch.arange(starts.start, starts.stop, dtype=torch.int64, device="cpu") + self.settings.window - 1
        return self.classes[:, ends].t()

    def loader(self, part: range, *, shuffle: bool = False) -> WindowLoader:
        """A loader over one part of the split."""
        size = self.settings.batch_size if shuffle else EVALUATION_BATCH
        return WindowLoader(self.dataset, part, size, shuffle, seed=self.settings.seed)

    def train(self, model: TGCN_HierarchicalMT, epochs: int, **options: Any) -> int:
        """Trains until the validation loss stops falling; keeps the best weights.

        Args:
            model (TGCN_HierarchicalMT): on the device of the dataset.
            epochs (int): at most.
            options: passed on to :func:`hiermt.train_hierarchical`.

        Returns:
            Number of epochs trained, including those before a checkpoint.
        """
        watched = self.loader(self.split.validation) if self.split.validation else None
        heads: list[dict[str, float]] = []
        train, validation, history = train_hierarchical(
            model,
            adam(model, self.settings.learning_rate),
            None,
            self.loader(self.split.train, shuffle=True),
            watched,
            num_epochs=epochs,
            device=self.dataset.series.device,
            callback=lambda _, metrics: heads.append(dict(metrics)),
            patience=self.settings.patience if watched is not None else None,
            **options,
        )
        self.losses = {f"train_{name}": list(values) for name, values in history.items()}
        if watched is not None:
            # A checkpoint holds the total of earlier validation losses, not the loss of each head.
            unknown: list[float | None] = [None] * (len(train) - len(heads))
            for name in ("signal_loss", "direction_loss"):
                self.losses[f"test_{name}"] = unknown + [metrics[f"test_{name}"] for metrics in heads]
            self.losses["test_total_loss"] = list(validation)
        return len(train)

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
        }


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
    )
    return Decisions(*(part.cpu() for part in decisions))
