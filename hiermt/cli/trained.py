"""A trained model read from its folder, with what prepares its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiermt._arguments import check_integer
from hiermt.cli.kinds import NETWORKS, Kind
from hiermt.cli.record import fingerprint
from hiermt.data import DataError, FeatureTable, Scale, WindowDataset
from hiermt.data.feature_names import as_names, check_same
from hiermt.graph import as_graph
from hiermt.io.checkpoint import WEIGHTS, read_config
from hiermt.nn import TGCN_HierarchicalMT


@dataclass(frozen=True)
class Trained:
    """A model, and the symbols, features, scale and graph of its inputs.

    ``used_until`` is the last day that training or validation read, as an ISO date.
    """

    model: Any
    symbols: tuple[str, ...]
    features: tuple[str, ...]
    window: int
    horizon: int
    threshold: float
    confidence: float
    scale: Scale
    edge_index: Tensor
    edge_weight: Tensor | None
    kind: Kind
    used_until: str | None = None

    @classmethod
    def read(cls, folder: Path, backend: str = "auto") -> Trained:
        """Reads the folder of a training.

        Raises:
            FileNotFoundError: the folder or a file in it is missing.
            ValueError: a file is damaged, or the files are of different trainings.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; give the --out folder of a training")
        config = read_config(folder)
        described = config.get("data")
        if not isinstance(described, dict):
            raise DataError(f"{folder}: config.json lacks the part 'data'; give the --out folder of a training")
        found = next((one for one in NETWORKS.values() if one.__name__ == config.get("model")), TGCN_HierarchicalMT)
        model = found.from_pretrained(folder, backend=backend)
        if described.get("weights_sha256") != fingerprint(folder / WEIGHTS):
            raise DataError(f"{folder}: {WEIGHTS} and config.json are of different trainings; train again")
        try:
            trained = _parsed(described, model)
        except (KeyError, TypeError, ValueError, OverflowError, IndexError, RuntimeError) as error:
            raise DataError(f"{folder}: config.json is damaged near {error}; train again") from error
        check_same(f"{folder}: 'features' in config.json", trained.features, model.feature_names)
        return trained

    def dataset(self, table: FeatureTable, device: torch.device | str = "cpu") -> WindowDataset:
        """The windows of a table, with features selected and scaled as in the training."""
        series = self.scale.apply(table.select(self.features).values)
        dataset = WindowDataset(
            series,
            self.edge_index,
            self.edge_weight,
            self.window,
            feature_names=self.features,
            present=table.present,
        )
        return dataset.to(device)


def _parsed(described: dict[str, Any], model: Any) -> Trained:
    """The part ``data`` of ``config.json``, checked against itself and the model.

    Raises:
        KeyError, TypeError, ValueError, OverflowError, IndexError, RuntimeError: an entry is missing or does not fit.
    """
    graph, scale, weight = described["graph"], described["scale"], described["graph"]["weight"]
    symbols, channels = _strings("symbols", described["symbols"]), model.config["in_channels"]
    # In a folder of a version whose models had no feature names, this is their only record.
    features = as_names(_strings("features", described["features"]), channels) or ()
    for name in ("window", "horizon"):
        check_integer(name, described[name], 1)
    for name in ("threshold", "confidence"):
        if not isinstance(described[name], (int, float)) or not 0 <= described[name] <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {described[name]!r}")
    for end in ("source", "target"):
        for node in graph[end]:
            check_integer(end, node, 0)
    edges = torch.tensor([graph["source"], graph["target"]], dtype=torch.int64, device="cpu").reshape(2, -1)
    weights = None if weight is None else torch.tensor(weight, dtype=torch.float32, device="cpu")
    as_graph(edges, weights, len(symbols))
    if weights is not None and not bool(weights.isfinite().all()):
        raise ValueError(f"weight: expected finite edge weights, got {weights[~weights.isfinite()][0]:g}")
    return Trained(
        model=model,
        symbols=symbols,
        features=features,
        window=described["window"],
        horizon=described["horizon"],
        threshold=float(described["threshold"]),
        confidence=float(described["confidence"]),
        scale=Scale(_vector(scale["mean"]), _vector(scale["deviation"]), features),
        edge_index=edges,
        edge_weight=weights,
        kind=Kind.parsed(described.get("task")),
        used_until=_last_day(described),
    )


def _last_day(described: dict[str, Any]) -> str | None:
    """The last day that was used; a folder of an earlier version has only that of the training span."""
    found = described.get("used_until", described["trained_on"][1] if "trained_on" in described else None)
    if found is not None and not (isinstance(found, str) and np.datetime64(found).dtype == np.dtype("datetime64[D]")):
        raise ValueError(f"used_until: expected a day, got {found!r}")
    return found


def _strings(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{name}: expected a list of strings, got {values!r}")
    if len(set(values)) < len(values):
        raise ValueError(f"{name}: expected each name once")
    return tuple(values)


def _vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")
