"""``hiermt::gcn_conv``: the native operator, its gradient, and its shapes for tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt.ops import rules

_PARAMS = 2


def gcn_conv(x: Tensor, csr: Sequence[Tensor], norm: Tensor, params: Sequence[Tensor], activation: int) -> Tensor:
    """GCN convolution over all time steps; :func:`hiermt.reference.gcn_conv` says what it computes."""
    dense = [param.contiguous() for param in params]
    return torch.ops.hiermt.gcn_conv(x, list(csr), norm.contiguous(), dense, activation)  # type: ignore[no-any-return]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, csr, norm, params, ctx.activation = inputs
    ctx.save_for_backward(x, output, norm, *params, *csr)


def _backward(ctx: Any, d_out: Tensor | None) -> tuple[Any, ...]:
    x, out, norm, *rest = ctx.saved_tensors
    params, csr = rest[:_PARAMS], rest[_PARAMS:]
    need_x, _, need_norm, need_params, _ = ctx.needs_input_grad
    if d_out is None:
        return None, [None] * len(csr), None, [None] * _PARAMS, None
    d_x, *grads, d_norm = torch.ops.hiermt.gcn_conv_backward(
        d_out.contiguous(), x, out, csr, norm, params, ctx.activation, need_x, any(need_params), need_norm
    )
    triples = zip(grads, params, need_params, strict=True)
    return (
        d_x if need_x else None,
        [None] * len(csr),
        d_norm.to(norm.dtype) if need_norm else None,
        [grad.to(param.dtype) if need else None for grad, param, need in triples],
        None,
    )


def _fake(x: Tensor, csr: list[Tensor], norm: Tensor, params: list[Tensor], activation: int) -> Tensor:
    return x.new_empty(x.size(0), x.size(1), params[0].size(0))


def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    out: Tensor,
    csr: list[Tensor],
    norm: Tensor,
    params: list[Tensor],
    activation: int,
    need_x: bool,
    need_params: bool,
    need_norm: bool,
) -> list[Tensor]:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [
        x.new_empty(x.shape if need_x else (0,)),
        *(x.new_empty(param.shape if need_params else (0,), dtype=compute) for param in params),
        x.new_empty(norm.shape if need_norm else (0,), dtype=compute),
    ]


def register() -> None:
    """Attaches the rules to the operators; called once, when the extension is there."""
    rules.register("gcn_conv", _fake, _fake_backward, _setup_context, _backward)
