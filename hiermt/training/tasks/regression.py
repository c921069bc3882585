"""Real numbers, one or several horizons a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt._arguments import check_number
from hiermt.training.tasks.task import Task, mask_of, mean, precise, target_of

_LOSSES = {"mae": F.l1_loss, "mse": F.mse_loss, "huber": F.smooth_l1_loss}
# Sums of a row for the scores: |e|, e^2, |e / y|, counted, counted with y != 0.
_SUMS = 5


class Regression(Task):
    r"""Real targets: mean absolute, squared or Huber error over the targets that are there.

    A target that is NaN or equal to `null`, or outside ``batch.target_mask``, does not count: with ``loss="mae"`` and
    ``null=0.0`` this is the masked MAE of the traffic literature (Li et al., arXiv 1707.01926). Targets stay in their
    own unit: the output is multiplied by `scale` and shifted by `shift` before it is compared with them.

    Args:
        loss (str): ``"mae"``, ``"mse"`` or ``"huber"`` (delta 1). (default: ``"mae"``)
        null (float, optional): value of a missing target. (default: ``None``, NaN alone)
        shift, scale (float): mean and standard deviation of a target, if the model predicts standardised ones.
            (default: ``0.0``, ``1.0``)
        target (str): attribute of a batch that holds the targets. (default: ``"y"``)
        process_group (ProcessGroup, optional): processes that each have a part of the batch. (default: ``None``)

    Shapes:
        - **output:** ``[*, K]`` for ``K`` horizons, or ``[*]`` for one; **target:** as many elements
        - **decide:** ``{"predictions"}`` in the unit of the targets and the shape of the output

    Raises:
        ValueError: an option is out of range; output or targets do not fit.
        TypeError: a number is of another type.
    """

    def __init__(
        self,
        loss: str = "mae",
        *,
        null: float | None = None,
        shift: float = 0.0,
        scale: float = 1.0,
        target: str = "y",
        process_group: Any = None,
    ) -> None:
        super().__init__()
        if loss not in _LOSSES:
            raise ValueError(f"loss: expected one of {', '.join(map(repr, _LOSSES))}, got {loss!r}")
        self.loss = loss
        self.null = None if null is None else check_number("null", null)
        self.shift, self.scale = check_number("shift", shift), check_number("scale", scale)
        self.target, self.needs, self.process_group = target, (target,), process_group

    def losses(self, output: Any, batch: Any) -> tuple[Tensor]:
        found, y, counts = self._rows(output, batch)
        return (mean(_LOSSES[self.loss](found, y, reduction="none"), counts, None, self.process_group),)

    def decide(self, output: Any) -> dict[str, Tensor]:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise self.expects("one Tensor of numbers", type(output).__name__)
        return {"predictions": precise(output) * self.scale + self.shift}

    def count(self, output: Any, batch: Any) -> dict[str, Tensor]:
        found, y, counts = self._rows(output, batch)
        error, there = (found - y).double(), counts.double()
        zero = y == 0
        relative = (error.abs() / y.double().masked_fill(zero, 1.0).abs()).masked_fill(zero, 0.0)
        sums = torch.stack([error.abs(), error**2, relative, there, there.masked_fill(zero, 0.0)])
        return {"": sums.masked_fill(~counts, 0.0).sum(1).t().flatten()}

    def score(self, counts: dict[str, list[float]]) -> dict[str, float]:
        sums = counts[""]
        horizons = [sums[i : i + _SUMS] for i in range(0, len(sums), _SUMS)]
        scores = _errors("", [sum(column) for column in zip(*horizons, strict=True)])
        if len(horizons) > 1:
            for k, of_horizon in enumerate(horizons, start=1):
                scores |= _errors(f"_{k}", of_horizon)
        return scores

    def _rows(self, output: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions, targets and which of them count, ``[R, K]``."""
        found = self.decide(output)["predictions"]
        y = target_of(self, batch, self.target)
        if y.numel() != found.numel() or y.is_complex():
            raise self.expects(f"as many targets in {self.target} as outputs, {list(found.shape)}", list(y.shape))
        mask = mask_of(batch, y.shape)
        # A model with one output returns [N, 1] for targets [N].
        several = found.size(-1) if found.dim() > 1 and y.dim() == found.dim() else 1
        y = precise(y).to(found.dtype)
        counts = ~y.isnan()
        if self.null is not None:
            counts = counts & (y != self.null)
        if mask is not None:
            counts = counts & mask
        found, y, counts = (each.reshape(-1, several) for each in (found, y, counts))
        return found.masked_fill(~counts, 0.0), y.masked_fill(~counts, 0.0), counts


def _errors(suffix: str, sums: Sequence[float]) -> dict[str, float]:
    absolute, squared, relative, count, nonzero = sums
    return {
        f"mae{suffix}": absolute / count if count else math.nan,
        f"rmse{suffix}": math.sqrt(squared / count) if count else math.nan,
        f"mape{suffix}": relative / nonzero if nonzero else math.nan,
        f"rows{suffix}": count,
    }
