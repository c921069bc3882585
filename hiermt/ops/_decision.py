"""``hiermt::decision`` and ``hiermt::decision_from_logits``: from the last state, or from logits, to a decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt.ops import operator
from hiermt.ops.operator import Operator, gradients_of

# What a call may ask for; an output that was not asked for is an empty tensor.
LOGITS, PROBABILITIES, PREDICTIONS, CONFIDENCES = 1, 2, 4, 8
ALL = LOGITS | PROBABILITIES | PREDICTIONS | CONFIDENCES


def decision(
    h: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    signal_weight: Tensor,
    signal_bias: Tensor,
    direction_weight: Tensor,
    direction_bias: Tensor,
    threshold: float,
    outputs: int = ALL,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output linear, heads, softmax and decision; :func:`hiermt.reference.decision` says what it computes.

    Gradients flow through the logits alone.
    """
    params = (out_weight, out_bias, signal_weight, signal_bias, direction_weight, direction_bias)
    return _decision(h, *map(Tensor.contiguous, params), threshold, outputs)  # type: ignore[no-any-return]


def head_logits(
    h: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    signal_weight: Tensor,
    signal_bias: Tensor,
    direction_weight: Tensor,
    direction_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """Output linear and heads alone."""
    params = (out_weight, out_bias, signal_weight, signal_bias, direction_weight, direction_bias)
    signal, direction, *_ = _decision(h, *map(Tensor.contiguous, params), 0.5, LOGITS)
    return signal, direction


def decision_from_logits(
    signal_logits: Tensor, direction_logits: Tensor, threshold: float, outputs: int = ALL
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax and decision; :func:`hiermt.reference.decision_from_logits` says what it computes."""
    return torch.ops.hiermt.decision_from_logits(  # type: ignore[no-any-return]
        signal_logits.detach(), direction_logits.detach(), threshold, outputs
    )


def _save(ctx: Any, args: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    h, out_weight, out_bias, signal_weight, _, direction_weight, *_ = args
    ctx.save_for_backward(h, out_weight, out_bias, signal_weight, direction_weight)


def _gradients(ctx: Any, need: Sequence[Any], d_signal: Tensor | None, d_direction: Tensor | None) -> Sequence[Any]:
    h, out_weight, out_bias, signal_weight, direction_weight = ctx.saved_tensors
    # A head that was not used has no gradient, which an optimizer tells from one of zeros.
    used = [True, True, *[d_signal is not None] * 2, *[d_direction is not None] * 2]
    need_h, *need_params = [wanted and use for wanted, use in zip(need[:7], [True, *used], strict=True)]
    d_h, *grads = operator.call(
        torch.ops.hiermt.decision_backward.default,
        *(d_signal, d_direction, h, out_weight, out_bias, signal_weight, direction_weight, need_h, any(need_params)),
    )
    return (d_h if need_h else None, *gradients_of([h] * 6, grads, need_params), None, None)


def _decided(like: Tensor, rows: Any, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        like.new_empty(rows if outputs & PROBABILITIES else 0, 4),
        like.new_empty(rows if outputs & PREDICTIONS else 0, dtype=torch.int64),
        like.new_empty(rows if outputs & CONFIDENCES else 0),
    )


def fake_decision(like: Tensor, rows: Any, outputs: int) -> tuple[Tensor, ...]:
    """What a decision over so many rows returns."""
    logits = rows if outputs & LOGITS else 0
    return like.new_empty(logits, 2), like.new_empty(logits, 2), *_decided(like, rows, outputs)


def _fake(
    h: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    signal_weight: Tensor,
    signal_bias: Tensor,
    direction_weight: Tensor,
    direction_bias: Tensor,
    threshold: float,
    outputs: int,
) -> tuple[Tensor, ...]:
    return fake_decision(h, h.size(0), outputs)


def _fake_backward(
    d_signal_logits: Tensor | None,
    d_direction_logits: Tensor | None,
    h: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    signal_weight: Tensor,
    direction_weight: Tensor,
    need_h: bool,
    need_params: bool,
) -> tuple[Tensor, ...]:
    rows, hidden = h.shape
    width = out_weight.size(0)
    features, classes = (width, 2) if need_params else (0, 0)
    compute = torch.float64 if h.dtype == torch.float64 else torch.float32
    shapes = [(features, hidden), (features,), *[(classes, width), (classes,)] * 2]
    return h.new_empty(rows if need_h else 0, hidden), *(h.new_empty(shape, dtype=compute) for shape in shapes)


def _fake_from_logits(
    signal_logits: Tensor, direction_logits: Tensor, threshold: float, outputs: int
) -> tuple[Tensor, ...]:
    return _decided(signal_logits, signal_logits.size(0), outputs)


_decision = Operator("decision", _fake, _fake_backward, _save, _gradients, differentiable=2)
operator.register_fake("decision_from_logits", _fake_from_logits)
operator.register_autocast("decision_from_logits")
