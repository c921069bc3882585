"""``hiermt::gated_scan``: the native operator, its gradient, and its shapes for tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from hiermt import ops_rules

_GATES = 6


def gated_scan(x: Tensor, g: Tensor, h0: Tensor | None, gates: Sequence[Tensor], sequence: bool) -> Tensor:
    """Gates and recurrence; :func:`hiermt.reference.gated_scan` says what it computes."""
    g = g.contiguous()
    state = None if h0 is None else h0.contiguous()
    params = [param.contiguous() for param in gates]
    save = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, g, state, *params)
    )
    out, *_ = torch.ops.hiermt.gated_scan(x, g, state, params, sequence, save)
    return out  # type: ignore[no-any-return]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, g, h0, gates, ctx.sequence, ctx.saved = inputs
    out, h, saved = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(h, saved)
    if ctx.saved:
        ctx.save_for_backward(x, g, h0, out if ctx.sequence else h, saved, *gates)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need_x, need_g, need_h0, need_gates, *_ = ctx.needs_input_grad
    if grad_out is None:
        return None, None, None, [None] * _GATES, None, None
    if not ctx.saved:
        raise RuntimeError("hiermt::gated_scan was called with save=False: it has no gradient")
    x, g, h0, h, saved, *gates = ctx.saved_tensors
    grad_x, grad_g, grad_h0, *grads = torch.ops.hiermt.gated_scan_backward(
        grad_out.contiguous(),
        x,
        g,
        h0,
        gates,
        ctx.sequence,
        h,
        saved,
        need_x,
        need_g,
        need_h0,
        any(need_gates),
    )
    triples = zip(grads, gates, need_gates, strict=True)
    return (
        grad_x if need_x else None,
        grad_g if need_g else None,
        grad_h0 if need_h0 else None,
        [grad.to(gate.dtype) if need else None for grad, gate, need in triples],
        None,
        None,
    )


def _double_backward(ctx: Any, *grads: Any) -> NoReturn:
    raise NotImplementedError("hiermt.gated_scan has no second derivative; use backend='reference' for double backward")


def _fake(
    x: Tensor, g: Tensor, h0: Tensor | None, gates: list[Tensor], sequence: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    nodes, steps, hidden = g.shape
    h = x.new_empty((nodes, steps, hidden) if sequence or save else (0,))
    last = x.new_empty((0,) if sequence else (nodes, hidden))
    saved = x.new_empty((nodes, steps, 3, hidden) if save else (0,))
    return (h, last, saved) if sequence else (last, h, saved)


def _fake_backward(
    grad_out: Tensor,
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
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    nodes, _, hidden = g.shape
    return [
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(g.shape if need_g else (0,)),
        x.new_empty((nodes, hidden) if need_h0 else (0,)),
        *(x.new_empty(gate.shape if need_gates else (0,), dtype=compute) for gate in gates),
    ]


def register() -> None:
    """Attaches the rules to the operators; called once, when the extension is there."""
    torch.library.register_fake("hiermt::gated_scan", _fake)
    torch.library.register_fake("hiermt::gated_scan_backward", _fake_backward)
    torch.library.register_autograd("hiermt::gated_scan", _backward, setup_context=_setup_context)
    torch.library.register_autograd("hiermt::gated_scan_backward", _double_backward)
    ops_rules.register_autocast("gated_scan")
