"""``hiermt::gated_scan_windows``: the native operator, its gradient, and its shapes for tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from hiermt import ops_rules

_GATES = 6


def gated_scan_windows(
    x: Tensor, g: Tensor, starts: Tensor, steps: int, gates: Sequence[Tensor], sequence: bool
) -> Tensor:
    """The recurrence over windows of one series; :func:`hiermt.reference.gated_scan_windows` says what it computes.

    Raises:
        IndexError: a window does not lie in the series.
    """
    g = g.contiguous()
    params = [param.contiguous() for param in gates]
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, g, *params))
    try:
        out, *_ = torch.ops.hiermt.gated_scan_windows(x, g, starts, steps, params, sequence, save)
    except RuntimeError as error:
        # The stable ABI carries one type of exception only.
        if "is outside the days" in str(error):
            raise IndexError(str(error)) from None
        raise
    return out  # type: ignore[no-any-return]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, g, starts, ctx.steps, gates, ctx.sequence, ctx.saved = inputs
    out, h, saved = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(h, saved)
    if ctx.saved:
        ctx.save_for_backward(x, g, starts, out if ctx.sequence else h, saved, *gates)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need_x, need_g, _, _, need_gates, *_ = ctx.needs_input_grad
    if grad_out is None:
        return None, None, None, None, [None] * _GATES, None, None
    if not ctx.saved:
        raise RuntimeError("hiermt::gated_scan_windows was called with save=False: it has no gradient")
    x, g, starts, h, saved, *gates = ctx.saved_tensors
    grad_x, grad_g, *grads = torch.ops.hiermt.gated_scan_windows_backward(
        grad_out.contiguous(),
        x,
        g,
        starts,
        ctx.steps,
        gates,
        ctx.sequence,
        h,
        saved,
        need_x,
        need_g,
        any(need_gates),
    )
    triples = zip(grads, gates, need_gates, strict=True)
    return (
        grad_x if need_x else None,
        grad_g if need_g else None,
        None,
        None,
        [grad.to(gate.dtype) if need else None for grad, gate, need in triples],
        None,
        None,
    )


def _double_backward(ctx: Any, *grads: Any) -> NoReturn:
    raise NotImplementedError(
        "hiermt.gated_scan_windows has no second derivative; use backend='reference' for double backward"
    )


def _fake(
    x: Tensor, g: Tensor, starts: Tensor, steps: int, gates: list[Tensor], sequence: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    nodes, hidden = starts.size(0) * x.size(0), g.size(2)
    h = x.new_empty((nodes, steps, hidden) if sequence or save else (0,))
    last = x.new_empty((0,) if sequence else (nodes, hidden))
    saved = x.new_empty((nodes, steps, 3, hidden) if save else (0,))
    return (h, last, saved) if sequence else (last, h, saved)


def _fake_backward(
    grad_out: Tensor,
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
) -> list[Tensor]:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(g.shape if need_g else (0,)),
        *(x.new_empty(gate.shape if need_gates else (0,), dtype=compute) for gate in gates),
    ]


def register() -> None:
    """Attaches the rules to the operators; called once, when the extension is there."""
    torch.library.register_fake("hiermt::gated_scan_windows", _fake)
    torch.library.register_fake("hiermt::gated_scan_windows_backward", _fake_backward)
    torch.library.register_autograd("hiermt::gated_scan_windows", _backward, setup_context=_setup_context)
    torch.library.register_autograd("hiermt::gated_scan_windows_backward", _double_backward)
    ops_rules.register_autocast("gated_scan_windows")
