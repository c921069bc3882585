"""What a training is for: the network, its task, the targets, and how its results are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import data
from hiermt.cli.settings import Settings
from hiermt.data import FeatureTable, WindowDataset
from hiermt.inference.rolling import Decisions, predict_rolling
from hiermt.nn import A3TGCN, TGCN, MultiTaskTGCN, TGCN_HierarchicalMT
from hiermt.training.tasks import Binary, Classification, Regression, Several, Task, TwoHeaded
from hiermt.training.tasks.absent import ABSENT

NETWORKS: dict[str, type[Any]] = {
    "hierarchical": TGCN_HierarchicalMT,
    "multitask": MultiTaskTGCN,
    "tgcn": TGCN,
    "a3tgcn": A3TGCN,
}
# The tasks of each network, the default first.
_TASKS_OF = {
    "hierarchical": ("two-headed",),
    "multitask": ("two-headed", "several"),
    "tgcn": ("classes", "binary", "regression"),
    "a3tgcn": ("classes", "binary", "regression"),
}
_HEADS = {"two-headed": {"signal": 2, "direction": 2}, "several": {"outcome": 3, "return": 1}}
_OUTPUTS = {"classes": 3, "binary": 1, "regression": 1}
_WITH_RETURNS = ("regression", "several")


def task_name(settings: Settings) -> str:
    """The task of the settings; ``auto`` is that of the network.

    Raises:
        ValueError: network and task contradict each other, or a threshold was given that the task does not read.
    """
    possible = _TASKS_OF[settings.network]
    name = possible[0] if settings.task == "auto" else settings.task
    if name not in possible:
        others = [network for network, tasks in _TASKS_OF.items() if name in tasks]
        raise ValueError(
            f"--task {name}: not with --network {settings.network}, whose tasks are {', '.join(possible)}; "
            f"use --network {' or '.join(others)}"
        )
    if name != "two-headed" and settings.confidence != 0.5:
        raise ValueError(f"--confidence: P(signal) above which to decide is of the two-headed task, not of {name}")
    return name


def model_of(settings: Settings, names: tuple[str, ...], backend: str) -> nn.Module:
    """A new network for features of these names."""
    task = task_name(settings)
    sizes = (settings.hidden, settings.layers)
    options: dict[str, Any] = {
        "use_gat": not settings.gcn,
        "layout": "NTF",
        "feature_names": names,
        "backend": backend,
    }
    kind = NETWORKS[settings.network]
    if settings.network == "multitask":
        return MultiTaskTGCN(len(names), *sizes, heads=_HEADS[task], **options)
    if settings.network == "hierarchical":
        return TGCN_HierarchicalMT(len(names), *sizes, **options)
    return kind(len(names), _OUTPUTS[task], *sizes, **options)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Kind:
    """A task, with the mean and the deviation of the returns of the training days.

    A network predicts returns in these units, as it reads features in theirs; results are in the units of the prices.
    """

    name: str
    shift: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, table: FeatureTable, settings: Settings, train_days: int) -> Kind:
        """The task of the settings, its units fitted on the training days."""
        name = task_name(settings)
        if name not in _WITH_RETURNS:
            return cls(name)
        returns = data.next_returns(table.close, settings.horizon)[:, : train_days - settings.horizon]
        known = returns[returns.isfinite()]
        deviation = float(known.std(correction=0))
        return cls(name, float(known.mean()), deviation if deviation > 0 else 1.0)

    @classmethod
    def parsed(cls, described: Mapping[str, Any] | None) -> Kind:
        """From the entry ``task`` of ``config.json``; a folder of an earlier version has none.

        Raises:
            TypeError, ValueError: an entry is of another type, or out of range.
        """
        if described is None:
            return cls("two-headed")
        if not isinstance(described, Mapping):
            raise TypeError(f"task: expected a name and units, got {described!r}")
        kind = cls(str(described.get("name")), float(described.get("shift", 0)), float(described.get("scale", 1)))
        known = sorted({task for tasks in _TASKS_OF.values() for task in tasks})
        if kind.name not in known:
            raise ValueError(f"task: expected one of {', '.join(known)}, got {kind.name!r}")
        if not math.isfinite(kind.shift) or not 0 < kind.scale < math.inf:
            raise ValueError(f"task: expected a finite shift and a scale above 0, got {kind.shift} and {kind.scale}")
        return kind

    def describe(self) -> dict[str, Any]:
        """The entry ``task`` of ``config.json``."""
        return dataclasses.asdict(self) if self.name in _WITH_RETURNS else {"name": self.name}

    @property
    def decides(self) -> bool:
        """Whether the result is Down, Neutral or Up."""
        return self.name not in ("binary", "regression")

    def task(self, confidence: float = 0.5) -> Task:
        """A new task for the training loop."""
        if self.name == "several":
            return Several({"outcome": Classification(3), "return": Regression("mse")})
        if self.name == "two-headed":
            return TwoHeaded(threshold=confidence)
        made: dict[str, Callable[[], Task]] = {
            "classes": lambda: Classification(3),
            "binary": Binary,
            "regression": lambda: Regression("mse"),
        }
        return made[self.name]()

    def targets(self, table: FeatureTable, settings: Settings) -> dict[str, Tensor]:
        """The targets of each day beside the labels of the two heads, by the name that the task reads."""
        returns = data.next_returns(table.close, settings.horizon)
        classes = true_classes(table, settings.horizon, settings.threshold).clamp(min=0)
        of_return = ((returns - self.shift) / self.scale).to(table.values.dtype)
        found: dict[str, dict[str, Tensor]] = {
            "classes": {"y": classes},
            "binary": {"y": (returns > settings.threshold).to(table.values.dtype)},
            "regression": {"y": of_return},
            "several": {"outcome": classes, "return": of_return},
        }
        return found.get(self.name, {})

    def decide(
        self, model: Any, dataset: WindowDataset, starts: range, confidence: float, *, progress: bool = False
    ) -> Any:
        """Results for consecutive windows on the CPU: :class:`Decisions`, or ``{"predictions", ...}``, ``[W, S]``."""
        days = slice(starts.start, starts.stop + dataset.window - 1)
        series = dataset.series[:, days]
        options: dict[str, Any] = {
            "progress": progress,
            "feature_names": dataset.feature_names,
            "present": None if dataset.present is None else dataset.present[:, days],
        }
        if self.name == "two-headed":
            decisions = predict_rolling(model, series, dataset.graph, dataset.window, threshold=confidence, **options)
            return Decisions(*(part.cpu() for part in decisions))
        found = predict_rolling(model, series, dataset.graph, dataset.window, task=self.task(), **options)
        results = {name: part.cpu() for name, part in found.items()}
        if self.decides:
            prefix = "outcome_" if self.name == "several" else ""
            return decisions_of_classes(results[f"{prefix}predictions"], results[f"{prefix}probabilities"])
        results = {name: part.squeeze(-1) for name, part in results.items()}
        if self.name == "regression":
            results["predictions"] = results["predictions"].double() * self.scale + self.shift
        return results


def decisions_of_classes(predictions: Tensor, probabilities: Tensor) -> Decisions:
    """Decisions of a network with three classes; the confidence is the probability of the class that was decided.

    Shapes:
        - **predictions:** ``[W, S]``; **probabilities:** ``[W, S, 3]`` (Down, Neutral, Up)
    """
    down, neutral, up = probabilities.unbind(-1)
    signal = down + up
    of_up = torch.where(signal > 0, up / signal, 0.5).where(~signal.isnan(), signal)
    confidences = probabilities.gather(-1, predictions.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    confidences = confidences.masked_fill(predictions == ABSENT, torch.nan)
    return Decisions(predictions, confidences, torch.stack([neutral, signal, 1 - of_up, of_up], -1))


def true_classes(table: FeatureTable, horizon: int, threshold: float) -> Tensor:
    """The class of each stock and day, ``[S, L]``: 0 Down, 1 Neutral, 2 Up; -1 if absent, or without a later price."""
    returns = data.next_returns(table.close, horizon)
    if table.present is None:
        return data.three_classes(*data.hierarchical_labels(returns, threshold))
    there = returns.isfinite() & table.present[:, : returns.size(1)]
    classes = data.three_classes(*data.hierarchical_labels(returns.where(there, 0.0), threshold))
    return classes.masked_fill(~there, -1)
