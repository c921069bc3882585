"""``hiermt::multitask_loss``: cross entropies of the two heads, and their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt.ops import operator
from hiermt.ops.operator import Operator


def multitask_loss(
    signal_logits: Tensor,
    direction_logits: Tensor,
    signal_targets: Tensor,
    direction_targets: Tensor,
    mask: Tensor | None,
    lambda_direction: float,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, signal and direction loss; :func:`hiermt.reference.multitask_loss` says what it computes.

    A label that counts and is no class gives NaN. `options` are class weights ``[2]`` in float64 of each head, label
    smoothing, gamma of the focal loss and the mask of the rows that count.
    """
    arguments = (signal_logits, direction_logits, signal_targets, direction_targets, mask, lambda_direction, *options)
    total, signal, direction, _ = _loss(*arguments)
    return total, signal, direction


# Of the options: two class weights, label smoothing, gamma and the mask of rows.
_DEFAULTS: tuple[Any, ...] = (None, None, 0.0, 0.0, None)


def _save(ctx: Any, args: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.lambda_direction = args[:6]
    # Left out of a call, the options have the schema's defaults.
    signal_weight, direction_weight, smoothing, gamma, row_mask = [*args[6:], *_DEFAULTS[len(args) - 6 :]]
    ctx.numbers = smoothing, gamma
    ctx.save_for_backward(*tensors, output[3], signal_weight, direction_weight, row_mask)


def _gradients(ctx: Any, need: Sequence[Any], *cotangents: Tensor | None) -> Sequence[Any]:
    *tensors, norms, signal_weight, direction_weight, row_mask = ctx.saved_tensors
    need_signal, need_direction, *others = need
    d_signal, d_direction = operator.call(
        torch.ops.hiermt.multitask_loss_backward.default,
        *(*cotangents, *tensors, norms, ctx.lambda_direction, need_signal, need_direction),
        *(signal_weight, direction_weight, *ctx.numbers, row_mask),
    )
    return (d_signal if need_signal else None, d_direction if need_direction else None, *[None] * len(others))


def _fake(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, signal, direction = (signal_logits.new_empty(()) for _ in range(3))
    return total, signal, direction, signal_logits.new_empty(2, dtype=torch.float64)


def _fake_backward(
    d_total: Tensor | None,
    d_signal: Tensor | None,
    d_direction: Tensor | None,
    signal_logits: Tensor,
    direction_logits: Tensor,
    signal_targets: Tensor,
    direction_targets: Tensor,
    mask: Tensor | None,
    norms: Tensor,
    lambda_direction: float,
    need_signal: bool,
    need_direction: bool,
    signal_weight: Tensor | None = None,
    direction_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    row_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    rows = signal_logits.size(0)
    return signal_logits.new_empty(rows if need_signal else 0, 2), signal_logits.new_empty(
        rows if need_direction else 0, 2
    )


# A loss is computed in float32 in an autocast region; hiermt.functional sees to it.
_loss = Operator("multitask_loss", _fake, _fake_backward, _save, _gradients, differentiable=3, autocast=False)
