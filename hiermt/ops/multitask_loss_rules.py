"""``hiermt::multitask_loss``: the native operator, its gradient, and its shapes for tracing."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from hiermt.ops import batched, rules


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

    A label in the mask that is no class gives NaN. `options` are class weights ``[2]`` in float64 of each head, label
    smoothing and gamma of the focal loss.
    """
    total, signal, direction, _ = _loss(
        signal_logits, direction_logits, signal_targets, direction_targets, mask, lambda_direction, *options
    )
    return total, signal, direction


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.lambda_direction = inputs[:6]
    # Left out of a call, the options have the schema's defaults.
    signal_weight, direction_weight, *ctx.options = inputs[6:] or (None, None)
    norms = output[3]
    ctx.mark_non_differentiable(norms)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, norms, signal_weight, direction_weight)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    *tensors, norms, signal_weight, direction_weight = ctx.saved_tensors
    need_signal, need_direction, *others = ctx.needs_input_grad
    rest = (None,) * len(others)
    if all(grad is None for grad in grads[:3]):
        return None, None, *rest
    d_signal, d_direction = rules.call(
        torch.ops.hiermt.multitask_loss_backward.default,
        *grads[:3],
        *tensors,
        norms,
        ctx.lambda_direction,
        need_signal,
        need_direction,
        *((signal_weight, direction_weight, *ctx.options) if ctx.options else ()),
    )
    return d_signal if need_signal else None, d_direction if need_direction else None, *rest


_loss = rules.EagerOperator("multitask_loss", _backward, _setup_context)


def _double_backward(ctx: Any, *grads: Any) -> NoReturn:
    raise NotImplementedError(
        "hiermt.multitask_loss has no second derivative; use backend='reference' for double backward"
    )


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
) -> tuple[Tensor, Tensor]:
    rows = signal_logits.size(0)
    return signal_logits.new_empty(rows if need_signal else 0, 2), signal_logits.new_empty(
        rows if need_direction else 0, 2
    )


def register() -> None:
    """Attaches the rules to the operators; called once, when the extension is there."""
    torch.library.register_fake("hiermt::multitask_loss", _fake)
    torch.library.register_fake("hiermt::multitask_loss_backward", _fake_backward)
    torch.library.register_autograd("hiermt::multitask_loss", _backward, setup_context=_setup_context)
    torch.library.register_autograd("hiermt::multitask_loss_backward", _double_backward)
    batched.register("multitask_loss_backward")
