"""``hiermt::gated_scan``: gates and recurrence, over the steps of x or over windows of a series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt.ops import operator
from hiermt.ops.operator import Operator, fake_gradients, gradients_of


def gated_scan(
    x: Tensor,
    g: Tensor | None,
    h0: Tensor | None,
    gates: Sequence[Tensor],
    starts: Tensor | None = None,
    present: Tensor | None = None,
    *,
    steps: int = 0,
    sequence: bool,
) -> Tensor:
    """Gates and recurrence; :func:`hiermt.reference.gated_scan` says what it computes.

    Raises:
        IndexError: a window does not lie in the series; looked at on the CPU only.
    """
    return _gated_scan(  # type: ignore[no-any-return]
        operator.masked(x, present),
        None if g is None else operator.masked(g, present).contiguous(),
        None if h0 is None else h0.contiguous(),
        list(map(Tensor.contiguous, gates)),
        starts,
        None if present is None else present.contiguous(),
        steps=steps,
        sequence=sequence,
        tf32=operator.allows_tf32(x),
    )


def _fake(
    x: Tensor,
    g: Tensor | None,
    h0: Tensor | None,
    gates: list[Tensor],
    starts: Tensor | None,
    present: Tensor | None,
    *,
    steps: int,
    sequence: bool,
    save: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return operator.fake_scan(x, gates[1].size(0), starts, steps, sequence, save)


def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    g: Tensor | None,
    h0: Tensor | None,
    gates: list[Tensor],
    *saved: Any,
    need_x: bool,
    need_g: bool,
    need_h0: bool,
    need_gates: bool,
    **options: Any,
) -> list[Tensor]:
    return [
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(g.shape if g is not None and need_g else (0,)),
        x.new_empty((d_out.size(0), gates[1].size(0)) if need_h0 else (0,)),
        *fake_gradients(x, gates, need_gates),
    ]


def _save(ctx: Any, args: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    x, g, h0, gates, starts, present = args
    out, h, values = output
    ctx.save_for_backward(x, g, h0, starts, present, out if ctx.options["sequence"] else h, values, *gates)


def _gradients(ctx: Any, need: Sequence[Any], d_out: Tensor) -> Sequence[Any]:
    need_x, need_g, need_h0, need_gates, *_ = need
    x, g, h0, starts, present, h, values, *gates = ctx.saved_tensors
    d_x, d_g, d_h0, *grads = operator.call(
        torch.ops.hiermt.gated_scan_backward.default,
        *(d_out.contiguous(), x, g, h0, gates, starts, present, h, values),
        **ctx.options,
        need_x=need_x,
        need_g=need_g,
        need_h0=need_h0,
        need_gates=any(need_gates),
    )
    return (
        d_x if need_x else None,
        d_g if need_g else None,
        d_h0 if need_h0 else None,
        gradients_of(gates, grads, need_gates),
        None,
        None,
    )


_gated_scan = Operator("gated_scan", _fake, _fake_backward, _save, _gradients, saves=True)
