"""``hiermt::decision`` and ``hiermt::decision_from_logits``: the native operators, their gradient and shapes."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from hiermt.ops import batched, rules

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
    dense = [param.contiguous() for param in params]
    return _decision(h, *dense, threshold, outputs)  # type: ignore[no-any-return]


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
    signal, direction, *_ = _decision(h, *[param.contiguous() for param in params], 0.5, LOGITS)
    return signal, direction


def decision_from_logits(
    signal_logits: Tensor, direction_logits: Tensor, threshold: float, outputs: int = ALL
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax and decision; :func:`hiermt.reference.decision_from_logits` says what it computes."""
    return torch.ops.hiermt.decision_from_logits(  # type: ignore[no-any-return]
        signal_logits.detach(), direction_logits.detach(), threshold, outputs
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    h, out_weight, out_bias, signal_weight, _, direction_weight, *_ = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h, out_weight, out_bias, signal_weight, direction_weight)


def _backward(ctx: Any, d_signal: Tensor | None, d_direction: Tensor | None, *_: Any) -> tuple[Any, ...]:
    h, out_weight, out_bias, signal_weight, direction_weight = ctx.saved_tensors
    need_h, *need_params = ctx.needs_input_grad[:7]
    given = d_signal if d_signal is not None else d_direction
    if given is None:
        return (None,) * 9
    # A head that nobody used has no gradient, which an optimizer tells from one of zeros.
    used = [True, True, *[d_signal is not None] * 2, *[d_direction is not None] * 2]
    need_params = [need and use for need, use in zip(need_params, used, strict=True)]
    d_h, *grads = rules.call(
        torch.ops.hiermt.decision_backward.default,
        d_signal,
        d_direction,
        h,
        out_weight,
        out_bias,
        signal_weight,
        direction_weight,
        need_h,
        any(need_params),
    )
    params = [
        None if not need else grad if grad.dtype == h.dtype else grad.to(h.dtype)
        for grad, need in zip(grads, need_params, strict=True)
    ]
    return (d_h if need_h else None, *params, None, None)


_decision = rules.EagerOperator("decision", _backward, _setup_context)


def _double_backward(ctx: Any, *grads: Any) -> NoReturn:
    raise NotImplementedError("hiermt.decision has no second derivative; use backend='reference' for double backward")


def _decided(like: Tensor, rows: Any, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        like.new_empty(rows if outputs & PROBABILITIES else 0, 4),
        like.new_empty(rows if outputs & PREDICTIONS else 0, dtype=torch.int64),
        like.new_empty(rows if outputs & CONFIDENCES else 0),
    )


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
    rows = h.size(0)
    logits = rows if outputs & LOGITS else 0
    return h.new_empty(logits, 2), h.new_empty(logits, 2), *_decided(h, rows, outputs)


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


def register() -> None:
    """Attaches the rules to the operators; called once, when the extension is there."""
    torch.library.register_fake("hiermt::decision", _fake)
    torch.library.register_fake("hiermt::decision_backward", _fake_backward)
    torch.library.register_fake("hiermt::decision_from_logits", _fake_from_logits)
    torch.library.register_autograd("hiermt::decision", _backward, setup_context=_setup_context)
    torch.library.register_autograd("hiermt::decision_backward", _double_backward)
    batched.register("decision_backward")
    rules.register_autocast("decision")
    rules.register_autocast("decision_from_logits")
