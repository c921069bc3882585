"""``hiermt::gated_scan_windows``: the native operator, its gradient, and its shapes for tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt.ops import rules


def gated_scan_windows(
    x: Tensor, g: Tensor, starts: Tensor, steps: int, gates: Sequence[Tensor], sequence: bool
) -> Tensor:
    """The recurrence over windows of one series; :func:`hiermt.reference.gated_scan_windows` says what it computes.

    Raises:
        IndexError: a window does not lie in the series; looked at on the CPU only.
    """
    g = g.contiguous()
    params = [param.contiguous() for param in gates]
    save = rules.is_recorded(x, g, *params)
    arguments = (x, g, starts, steps, params, sequence, save, rules.allows_tf32(x))
    with rules.windows_outside():
        out, *_ = torch.ops.hiermt.gated_scan_windows(*arguments)
    return out  # type: ignore[no-any-return]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, g, starts, ctx.steps, gates, ctx.sequence, ctx.saved, ctx.tf32 = inputs
    rules.save_scan(ctx, output, (x, g, starts), gates)


def _backward(ctx: Any, d_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need_x, need_g, _, _, need_gates, *_ = ctx.needs_input_grad
    if d_out is None:
        return None, None, None, None, [None] * len(need_gates), None, None, None
    (x, g, starts), h, saved, gates = rules.saved_scan(ctx, "gated_scan_windows", 3)
    need = need_x, need_g, any(need_gates)
    arguments = (d_out.contiguous(), x, g, starts, ctx.steps, gates, ctx.sequence, h, saved, *need, ctx.tf32)
    d_x, d_g, *grads = torch.ops.hiermt.gated_scan_windows_backward(*arguments)
    return (
        d_x if need_x else None,
        d_g if need_g else None,
        None,
        None,
        rules.gradients_of(gates, grads, need_gates),
        None,
        None,
        None,
    )


def _fake(
    x: Tensor, g: Tensor, starts: Tensor, steps: int, gates: list[Tensor], sequence: bool, save: bool, tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (starts.size(0) * x.size(0), steps, g.size(2))
    return rules.fake_scan(x, shape, sequence, save, save and x.device.type == "cpu")  # CUDA computes gates again


def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    g: Tensor,
    starts: Tensor,
    steps: int,
    gates: list[Tensor],
    sequence: bool,
    h: Tensor,
    saved: Tensor,
    need_x: bool,
    need_g: bool,
    need_gates: bool,
    tf32: bool,
) -> list[Tensor]:
    return [
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(g.shape if need_g else (0,)),
        *rules.fake_gradients(x, gates, need_gates),
    ]


def register() -> None:
    """Attaches the rules to the operators; called once, when the extension is there."""
    rules.register("gated_scan_windows", _fake, _fake_backward, _setup_context, _backward)
