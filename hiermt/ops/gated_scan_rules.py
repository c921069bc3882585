"""``hiermt::gated_scan``: the native operator, its gradient, and its shapes for tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt.ops import rules


def gated_scan(x: Tensor, g: Tensor, h0: Tensor | None, gates: Sequence[Tensor], sequence: bool) -> Tensor:
    """Gates and recurrence; :func:`hiermt.reference.gated_scan` says what it computes."""
    g = g.contiguous()
    state = None if h0 is None else h0.contiguous()
    params = [param.contiguous() for param in gates]
    save = rules.is_recorded(x, g, state, *params)
    out, *_ = torch.ops.hiermt.gated_scan(x, g, state, params, sequence, save)
    return out  # type: ignore[no-any-return]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, g, h0, gates, ctx.sequence, ctx.saved = inputs
    rules.save_scan(ctx, output, (x, g, h0), gates)


def _backward(ctx: Any, d_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need_x, need_g, need_h0, need_gates, *_ = ctx.needs_input_grad
    if d_out is None:
        return None, None, None, [None] * len(need_gates), None, None
    (x, g, h0), h, saved, gates = rules.saved_scan(ctx, "gated_scan", 3)
    need = need_x, need_g, need_h0, any(need_gates)
    arguments = (d_out.contiguous(), x, g, h0, gates, ctx.sequence, h, saved, *need)
    d_x, d_g, d_h0, *grads = torch.ops.hiermt.gated_scan_backward(*arguments)
    return (
        d_x if need_x else None,
        d_g if need_g else None,
        d_h0 if need_h0 else None,
        rules.gradients_of(gates, grads, need_gates),
        None,
        None,
    )


def _fake(
    x: Tensor, g: Tensor, h0: Tensor | None, gates: list[Tensor], sequence: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return rules.fake_scan(x, g.shape, sequence, save, save)


def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    g: Tensor,
    h0: Tensor | None,
    gates: list[Tensor],
    sequence: bool,
    h: Tensor,
    saved: Tensor,
    need_x: bool,
    need_g: bool,
    need_h0: bool,
    need_gates: bool,
) -> list[Tensor]:
    return [
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(g.shape if need_g else (0,)),
        x.new_empty((g.size(0), g.size(2)) if need_h0 else (0,)),
        *rules.fake_gradients(x, gates, need_gates),
    ]


def register() -> None:
    """Attaches the rules to the operators; called once, when the extension is there."""
    rules.register("gated_scan", _fake, _fake_backward, _setup_context, _backward)
