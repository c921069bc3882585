"""``hiermt::gatv2_conv``: the native operator, its gradient, and its shapes for tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt.ops import rules

_PARAMS = 6


def gatv2_conv(
    x: Tensor,
    csr: Sequence[Tensor],
    edge_weight: Tensor | None,
    params: Sequence[Tensor],
    lin_edge: Tensor | None,
    activation: int,
) -> Tensor:
    """GATv2 convolution over all time steps; :func:`hiermt.reference.gatv2_conv` says what it computes."""
    params = [param.contiguous() for param in params]
    weight = None if edge_weight is None or lin_edge is None else edge_weight.contiguous()
    projection = None if lin_edge is None else lin_edge.contiguous()
    return torch.ops.hiermt.gatv2_conv(x, list(csr), weight, params, projection, activation)  # type: ignore[no-any-return]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, csr, edge_weight, params, lin_edge, activation = inputs
    ctx.save_for_backward(x, output, edge_weight, lin_edge, *params, *csr)
    ctx.activation = activation


def _backward(ctx: Any, d_out: Tensor | None) -> tuple[Any, ...]:
    x, out, edge_weight, lin_edge, *rest = ctx.saved_tensors
    params, csr = rest[:_PARAMS], rest[_PARAMS:]
    need_x, _, need_weight, need_params, need_edge, _ = ctx.needs_input_grad
    none = (None, [None] * len(csr), None, [None] * _PARAMS, None, None)
    if d_out is None:
        return none
    any_param = any(need_params) or need_edge
    grads = torch.ops.hiermt.gatv2_conv_backward(
        d_out.contiguous(),
        x,
        out,
        csr,
        edge_weight,
        params,
        lin_edge,
        ctx.activation,
        need_x,
        any_param,
        need_weight,
    )
    return (
        grads[0] if need_x else None,
        [None] * len(csr),
        grads[8].to(edge_weight.dtype) if need_weight else None,
        [
            grad.to(param.dtype) if need else None
            for grad, param, need in zip(grads[1:7], params, need_params, strict=True)
        ],
        _edge_gradient(grads[7], edge_weight, lin_edge) if need_edge else None,
        None,
    )


def _edge_gradient(grad: Tensor, edge_weight: Tensor | None, lin_edge: Tensor) -> Tensor:
    """Without edge weights the projection is not read."""
    return torch.zeros_like(lin_edge) if edge_weight is None else grad.to(lin_edge.dtype)


def _fake(
    x: Tensor,
    csr: list[Tensor],
    edge_weight: Tensor | None,
    params: list[Tensor],
    lin_edge: Tensor | None,
    activation: int,
) -> Tensor:
    return x.new_empty(x.size(0), x.size(1), params[0].size(0))


def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    out: Tensor,
    csr: list[Tensor],
    edge_weight: Tensor | None,
    params: list[Tensor],
    lin_edge: Tensor | None,
    activation: int,
    need_x: bool,
    need_params: bool,
    need_edge_weight: bool,
) -> list[Tensor]:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32

    def like(tensor: Tensor | None, wanted: bool) -> Tensor:
        shape = tensor.shape if tensor is not None and wanted else (0,)
        return x.new_empty(shape, dtype=compute)

    return [
        x.new_empty(x.shape if need_x else (0,)),
        *(like(param, need_params) for param in params),
        like(lin_edge, need_params and edge_weight is not None),
        like(edge_weight, need_edge_weight),
    ]


def register() -> None:
    """Attaches the rules to the operators; called once, when the extension is there."""
    rules.register("gatv2_conv", _fake, _fake_backward, _setup_context, _backward)
