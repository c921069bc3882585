"""The hierarchical task: signal or noise, then up or down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt import functional
from hiermt._arguments import check_number
from hiermt.data.labels import three_classes
from hiermt.training.criterion import ONE, is_own, loss_terms, make_criterion
from hiermt.training.tasks.task import Task, mask_of, target_of


class TwoHeaded(Task):
    r"""Signal or noise, then up or down, decided together: the task of :class:`hiermt.TGCN_HierarchicalMT`.

    Args:
        criterion (Module, optional): a :class:`hiermt.MultiTaskLoss`, or a callable with the same arguments; see
            :func:`hiermt.train_hierarchical`. (default: ``None``, ``MultiTaskLoss(lambda_direction)``)
        lambda_direction (float): weight of the direction loss, if there is no criterion. (default: ``1.0``)
        threshold (float): a row has a signal iff ``P(signal)`` is above it. (default: ``0.5``)

    Rows outside ``batch.target_mask``, and those of stocks that are absent on the last day (``batch.present``), count
    in neither loss nor score. A criterion of another class gets those that count as ``row_mask=``, where there are such
    rows.

    Shapes:
        - **output:** a pair of logits ``[*, 2]``, or a mapping with ``signal`` and ``direction``; **signal_labels**,
          **direction_labels:** ``[*]``
        - **decide:** ``{"predictions": [*] int64 (0 Down, 1 Neutral, 2 Up), "confidences": [*], "probabilities":
          [*, 4] (noise, signal, down, up)}``

    Raises:
        ValueError: a number is out of range; output or labels do not fit.
        TypeError: a number is of another type.
    """

    parts = ("total_loss", "signal_loss", "direction_loss")
    needs = ("signal_labels", "direction_labels")

    def __init__(self, criterion: Any = None, lambda_direction: float = ONE, *, threshold: float = 0.5) -> None:
        super().__init__()
        self.criterion = make_criterion(criterion, lambda_direction)
        self.threshold = check_number("threshold", threshold, 0.0, 1.0)

    @property
    def capturable(self) -> bool:
        return is_own(self.criterion) and self.criterion.process_group is None

    @property
    def stored(self) -> Any:
        return self.criterion

    def losses(self, output: Any, batch: Any) -> Sequence[Tensor]:
        return loss_terms(self.criterion, self._logits(output), batch, self._counted(batch))

    def decide(self, output: Any) -> dict[str, Tensor]:
        probabilities, predictions, confidences = functional.decision_from_logits(*self._logits(output), self.threshold)
        return {"predictions": predictions, "confidences": confidences, "probabilities": probabilities}

    def count(self, output: Any, batch: Any) -> dict[str, Tensor]:
        decided = self.decide([part.reshape(-1, 2) for part in self._logits(output)])
        signal, direction = (target_of(self, batch, name).reshape(-1) for name in self.needs)
        actual = three_classes(signal, direction)
        mask = self._counted(batch)
        counts = torch.ones_like(actual, dtype=torch.bool) if mask is None else mask.reshape(-1)
        # A label that does not count may be anything.
        actual = actual.masked_fill(~counts, 1)
        confusion = torch.zeros(9, dtype=torch.float64, device=actual.device)
        confusion = confusion.index_add(0, 3 * actual + decided["predictions"], counts.double())
        down, up = decided["probabilities"][:, 2:].unbind(1)
        there = (signal == 1) & counts
        rightly = ((up > down) == (direction == 1)) & there
        found = ((decided["predictions"] != 1) == there) & counts
        return {"": torch.cat([confusion, torch.stack([found.sum(), rightly.sum(), there.sum()]).double()])}

    def score(self, counts: dict[str, list[float]]) -> dict[str, float]:
        *cells, found, rightly, signals = counts[""]
        total = sum(cells)
        scores = {
            "accuracy": (cells[0] + cells[4] + cells[8]) / total if total else math.nan,
            "signal_accuracy": found / total if total else math.nan,
            "direction_accuracy": rightly / signals if signals else math.nan,
            "rows": total,
        }
        return scores | {f"confusion_{i}_{j}": cells[3 * i + j] for i in range(3) for j in range(3)}

    def _counted(self, batch: Any) -> Tensor | None:
        """The rows that count, in the shape of the labels."""
        return mask_of(batch, target_of(self, batch, self.needs[0]).shape)

    def _logits(self, output: Any) -> tuple[Tensor, Tensor]:
        if isinstance(output, Mapping) and output.keys() >= {"signal", "direction"}:
            output = output["signal"], output["direction"]
        pair = isinstance(output, tuple | list) and len(output) == 2
        if not pair or not all(isinstance(part, Tensor) and part.dim() and part.size(-1) == 2 for part in output):
            raise self.expects("signal and direction logits, [*, 2] each", _kind(output))
        return tuple(output)


def _kind(output: Any) -> object:
    return list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
