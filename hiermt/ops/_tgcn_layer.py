"""``hiermt::tgcn_layer``: a convolution stack and a gated scan in one operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt.ops import operator
from hiermt.ops.operator import Operator, fake_gradients, gradients_of


def tgcn_layer(
    x: Tensor,
    csr: Sequence[Tensor],
    edge_weight: Tensor | None,
    conv_params: Sequence[Tensor],
    gate_params: Sequence[Tensor],
    h0: Tensor | None = None,
    starts: Tensor | None = None,
    present: Tensor | None = None,
    *,
    steps: int = 0,
    conv_layers: int,
    between: bool,
    sequence: bool,
) -> Tensor:
    """One T-GCN layer; :func:`hiermt.reference.tgcn_layer` says what it computes.

    Raises:
        IndexError: a window does not lie in the series; looked at on the CPU only.
    """
    return _tgcn_layer(  # type: ignore[no-any-return]
        operator.masked(x, present),
        csr,
        None if edge_weight is None else edge_weight.contiguous(),
        list(map(Tensor.contiguous, conv_params)),
        list(map(Tensor.contiguous, gate_params)),
        None if h0 is None else h0.contiguous(),
        starts,
        None if present is None else present.contiguous(),
        steps=steps,
        conv_layers=conv_layers,
        between=between,
        sequence=sequence,
        tf32=operator.allows_tf32(x),
    )


def _fake(
    x: Tensor,
    csr: list[Tensor],
    edge_weight: Tensor | None,
    conv_params: list[Tensor],
    gate_params: list[Tensor],
    h0: Tensor | None,
    starts: Tensor | None,
    present: Tensor | None,
    *,
    steps: int,
    sequence: bool,
    save: bool,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = conv_params[0].size(0)
    g = x.new_empty((x.size(0), x.size(1), hidden) if save else (0,))
    return *operator.fake_scan(x, hidden, starts, steps, sequence, save), g


def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    csr: list[Tensor],
    edge_weight: Tensor | None,
    conv_params: list[Tensor],
    gate_params: list[Tensor],
    *saved: Any,
    need_x: bool,
    need_conv: bool,
    need_gates: bool,
    need_h0: bool,
    need_edge_weight: bool,
    **options: Any,
) -> list[Tensor]:
    weight = x.new_empty(0) if edge_weight is None else edge_weight
    return [
        x.new_empty(x.shape if need_x else (0,)),
        *fake_gradients(x, conv_params, need_conv),
        *fake_gradients(x, gate_params, need_gates),
        x.new_empty((d_out.size(0), conv_params[0].size(0)) if need_h0 else (0,)),
        *fake_gradients(x, [weight], need_edge_weight),
    ]


def _save(ctx: Any, args: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    x, csr, weight, convs, gates, h0, starts, present = args
    out, h, values, g = output
    ctx.counts = len(csr), len(convs)
    h = out if ctx.options["sequence"] else h
    ctx.save_for_backward(x, weight, h0, starts, present, h, values, g, *csr, *convs, *gates)


def _gradients(ctx: Any, need: Sequence[Any], d_out: Tensor) -> Sequence[Any]:
    need_x, need_csr, need_weight, need_convs, need_gates, need_h0, *_ = need
    x, weight, h0, starts, present, h, values, g, *rest = ctx.saved_tensors
    entries, count = ctx.counts
    csr, convs, gates = rest[:entries], rest[entries : entries + count], rest[entries + count :]
    d_x, *grads, d_h0, d_weight = operator.call(
        torch.ops.hiermt.tgcn_layer_backward.default,
        *(d_out.contiguous(), x, csr, weight, convs, gates, h0, starts, present, h, values, g),
        **ctx.options,
        need_x=need_x,
        need_conv=any(need_convs),
        need_gates=any(need_gates),
        need_h0=need_h0,
        need_edge_weight=need_weight,
    )
    return (
        d_x if need_x else None,
        [None] * len(need_csr),
        d_weight.to(x.dtype) if need_weight else None,
        gradients_of(convs, grads[:count], need_convs),
        gradients_of(gates, grads[count:], need_gates),
        d_h0 if need_h0 else None,
        None,
        None,
    )


_tgcn_layer = Operator("tgcn_layer", _fake, _fake_backward, _save, _gradients, saves=True)
