"""The twin of ``hiermt::multitask_loss``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def multitask_loss(
    signal_logits: Tensor,
    direction_logits: Tensor,
    signal_targets: Tensor,
    direction_targets: Tensor,
    mask: Tensor | None,
    lambda_direction: float,
    signal_weight: Tensor | None = None,
    direction_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    row_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Cross entropy of the signal head plus that of the direction head over the rows of `mask`.

    Rows outside `mask` are ignored for the direction, and rows outside `row_mask` for both heads, whatever their logits
    and targets. A head without a row that counts, or whose rows all have weight zero, has a loss of zero with zero
    gradients.

    Args:
        signal_logits, direction_logits (Tensor): logits of the two heads.
        signal_targets, direction_targets (Tensor): 0 or 1.
        mask (Tensor, optional): rows that count for the direction; all of them by default.
        lambda_direction (float): weight of the direction loss.
        signal_weight, direction_weight (Tensor, optional): weight of each class; 1 by default.
        label_smoothing (float): as in ``torch.nn.CrossEntropyLoss``.
        focal_gamma (float): exponent of ``1 - p`` in front of each row's loss (arXiv 1708.02002).
        row_mask (Tensor, optional): rows that count at all; all of them by default.

    Shapes:
        - **logits:** ``[N, 2]``; **targets:** ``[N]`` int64; **mask**, **row_mask:** ``[N]`` bool; **weights:** ``[2]``
        - **returns:** total, signal and direction loss, scalars
    """
    if row_mask is not None:
        mask = row_mask if mask is None else mask & row_mask
    signal = _cross_entropy(signal_logits, signal_targets, row_mask, signal_weight, label_smoothing, focal_gamma)
    direction = _cross_entropy(
        direction_logits, direction_targets, mask, direction_weight, label_smoothing, focal_gamma
    )
    return signal + lambda_direction * direction, signal, direction


def _cross_entropy(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    focal_gamma: float,
) -> Tensor:
    if mask is not None:
        logits = logits.masked_fill(~mask.unsqueeze(-1), 0.0)
        targets = targets.masked_fill(~mask, 0)
    if weight is None and label_smoothing == 0.0 and focal_gamma == 0.0:
        if mask is None:
            return F.cross_entropy(logits, targets)
        per_row = F.cross_entropy(logits, targets, reduction="none")
        return per_row.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)
    # The native kernels compute in float32 where they store 16 bits.
    computed = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    weight = None if weight is None else weight.to(computed.dtype)
    per_row = F.cross_entropy(computed, targets, weight, reduction="none", label_smoothing=label_smoothing)
    if focal_gamma > 0.0:
        # Through the logarithm: the derivative of (1 - p) ** gamma with gamma < 1 is infinite at p = 1.
        other = F.log_softmax(computed, -1).gather(-1, 1 - targets.unsqueeze(-1)).squeeze(-1)
        per_row = per_row * (focal_gamma * other).exp()
    counted = torch.ones_like(targets, dtype=computed.dtype) if weight is None else weight[targets]
    if mask is not None:
        per_row, counted = per_row.masked_fill(~mask, 0.0), counted.masked_fill(~mask, 0.0)
    norm = counted.sum()
    none = norm == 0
    mean = per_row.sum() / norm.masked_fill(none, 1.0)
    return mean.masked_fill(none, 0.0).to(logits.dtype)
