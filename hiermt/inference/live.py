"""Decisions for each new day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiermt._arguments import check_integer
from hiermt.graph import Graph
from hiermt.inference.decider import Decisions, check_finite, check_names, check_series, decider
from hiermt.presence import check_present
from hiermt.training.tasks import Task
from hiermt.training.tasks.absent import marked


class LivePredictor:
    r"""Decides after each new day.

    The features of the last ``window`` days are kept. Each decision is that of ``model.decide`` on them, with its
    current weights, dtypes and autocast.

    Args:
        model (TGCN_HierarchicalMT): or a wrapper with its method `decide`, or with `task` any model of the package;
            left in evaluation mode.
        graph (Graph): of the stocks; weights changed in place apply from the next day on.
        window (int): ``T``, days in a window. (default: ``25``)
        threshold (float): a stock has a signal iff ``P(signal)`` is above it. (default: ``0.5``)
        feature_names (sequence of str, optional): of the days, as for :func:`predict_rolling`. (default: ``None``)
        task (Task, optional): as for :func:`predict_rolling`; its result takes the place of :class:`Decisions`.
            (default: ``None``)

    Attributes:
        days (int): number of days so far; of each call, at most the last `window` days are counted.

    Raises:
        ValueError: `window` is below 1, `threshold` is not a probability, the features are not those of the model, or
            model and graph are on two devices.
        TypeError: the model, the graph or `window` is of another type.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        window: int = 25,
        *,
        threshold: float = 0.5,
        feature_names: Sequence[str] | None = None,
        task: Task | None = None,
    ) -> None:
        self._decide = decider(model, graph, threshold, task, (Graph,))
        check_names(model, feature_names)
        check_integer("window", window, 1)
        self.model: Any = model.eval()
        self.window, self.threshold, self.task = window, threshold, task
        self.graph = graph
        self.days = 0
        self._kept: Tensor | None = None  # [S, days, F], of the last window at most
        self._present: Tensor | None = None  # [S, days], None as long as no mask was given

    def extend(self, series: Tensor, present: Tensor | None = None) -> Any:
        """Appends several days, ``[S, D, F]``, all or none, and decides after the last; see :meth:`append`.

        Where stocks are absent, `present` ``[S, D]`` says so.
        """
        check_series("series", self.model, series, self.graph, "[stocks, days, {}]")
        return self._append("series", series, present) if series.size(1) else None

    def append(self, day: Tensor, present: Tensor | None = None) -> Any:
        """Appends the features of a new day and decides for the day after.

        Args:
            day (Tensor): features of each stock, scaled as in training.
            present (Tensor, optional): which stocks are there on this day, such as ``day.isfinite().all(-1)``; the
                features of others may be NaN. A stock that is absent gets -1 for integers and NaN for other numbers.
                (default: ``None``, all of them)

        Shapes:
            - **day:** ``[S, F]``; **present:** ``[S]`` bool
            - **returns:** :class:`Decisions` with ``W = 1``, or ``None`` until there are `window` days

        Raises:
            ValueError: a size or device does not fit, or the day holds NaN or infinity where a stock is present; no day
                is appended.
            TypeError: the dtype is not that of the model or of the earlier days; no day is appended.
        """
        check_series("day", self.model, day, self.graph, "[stocks, {}]")
        if present is not None:
            present = check_present(present, day.shape[:1], day).unsqueeze(1)
        return self._append("day", day.unsqueeze(1), present)

    @torch.no_grad()
    def _append(self, name: str, series: Tensor, present: Tensor | None) -> Any:
        if present is not None:
            check_present(present, series.shape[:2], series)
        check_finite(series, name, present)
        before, new = self._kept, series[:, -self.window :]
        if before is None:
            kept = new.clone()
        elif before.dtype != series.dtype or before.device != series.device:
            raise TypeError(
                f"{name} is {series.dtype} on {series.device}, the earlier days are {before.dtype} on {before.device}; "
                "convert it, or make a new LivePredictor and give it the last days"
            )
        else:
            kept = torch.cat([before, new], dim=1)[:, -self.window :]
        masked = present is not None or self._present is not None
        there = self._masks(new, present)[:, -self.window :] if masked else None
        decided: Any = None
        if kept.size(1) == self.window:
            # As a plain x, a single window needs no check of its start.
            x = kept if self.model.layout == "NTF" else kept.transpose(1, 2)
            found = self._decide(x, self.graph, there)
            if there is not None:
                found = marked(found, there[:, -1])
            found = {name: column.unsqueeze(0) for name, column in found.items()}
            decided = found if self.task is not None else Decisions(**found)
        # Last, so that a day that the model refuses is not appended.
        self._kept, self._present, self.days = kept, there, self.days + new.size(1)
        return decided

    def _masks(self, new: Tensor, present: Tensor | None) -> Tensor:
        """The masks of the kept and the new days; without one, every stock was there."""
        days = 0 if self._kept is None else self._kept.size(1)
        before = new.new_ones(new.size(0), days, dtype=torch.bool) if self._present is None else self._present
        added = new.new_ones(new.shape[:2], dtype=torch.bool) if present is None else present[:, -self.window :]
        return torch.cat([before, added], dim=1)
