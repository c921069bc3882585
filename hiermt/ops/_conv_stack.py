"""``hiermt::conv_stack``: convolutions of one kind over all time steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt.ops.operator import Operator, allows_tf32, call, fake_gradients, gradients_of, masked


def conv_stack(
    x: Tensor,
    csr: Sequence[Tensor],
    edge_weight: Tensor | None,
    conv_params: Sequence[Tensor],
    present: Tensor | None = None,
    *,
    conv_layers: int,
    activation: int,
) -> Tensor:
    """A stack of convolutions; :func:`hiermt.reference.conv_stack` says what it computes."""
    return _conv_stack(  # type: ignore[no-any-return]
        masked(x, present),
        csr,
        None if edge_weight is None else edge_weight.contiguous(),
        list(map(Tensor.contiguous, conv_params)),
        None if present is None else present.contiguous(),
        conv_layers=conv_layers,
        activation=activation,
        tf32=allows_tf32(x),
    )


def _fake(
    x: Tensor,
    csr: list[Tensor],
    edge_weight: Tensor | None,
    conv_params: list[Tensor],
    present: Tensor | None,
    **options: Any,
) -> Tensor:
    return x.new_empty(x.size(0), x.size(1), conv_params[0].size(0))


def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    csr: list[Tensor],
    edge_weight: Tensor | None,
    conv_params: list[Tensor],
    present: Tensor | None,
    out: Tensor,
    *,
    need_x: bool,
    need_conv: bool,
    need_edge_weight: bool,
    **options: Any,
) -> list[Tensor]:
    weight = x.new_empty(0) if edge_weight is None else edge_weight
    return [
        x.new_empty(x.shape if need_x else (0,)),
        *fake_gradients(x, conv_params, need_conv),
        *fake_gradients(x, [weight], need_edge_weight),
    ]


def _save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    x, csr, weight, params, present = args
    ctx.entries = len(csr)
    ctx.save_for_backward(x, output, weight, present, *csr, *params)


def _gradients(ctx: Any, need: Sequence[Any], d_out: Tensor) -> Sequence[Any]:
    need_x, need_csr, need_weight, need_params, _ = need
    x, out, weight, present, *rest = ctx.saved_tensors
    csr, params = rest[: ctx.entries], rest[ctx.entries :]
    d_x, *grads, d_weight = call(
        torch.ops.hiermt.conv_stack_backward.default,
        d_out.contiguous(),
        x,
        csr,
        weight,
        params,
        present,
        out,
        **ctx.options,
        need_x=need_x,
        need_conv=any(need_params),
        need_edge_weight=need_weight,
    )
    return (
        d_x if need_x else None,
        [None] * len(need_csr),
        d_weight.to(x.dtype) if need_weight else None,
        gradients_of(params, grads, need_params),
        None,
    )


_conv_stack = Operator("conv_stack", _fake, _fake_backward, _save, _gradients)
