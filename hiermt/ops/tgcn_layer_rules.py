"""``hiermt::tgcn_layer``: the native operator, its gradient, and its shapes for tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt.ops import rules


def tgcn_layer(
    x: Tensor,
    csr: Sequence[Tensor],
    edge_weight: Tensor | None,
    conv_params: Sequence[Tensor],
    gate_params: Sequence[Tensor],
    conv_layers: int,
    gat: bool,
    edge: bool,
    between: bool,
    sequence: bool,
    starts: Tensor | None = None,
    steps: int = 0,
) -> Tensor:
    """One T-GCN layer; :func:`hiermt.reference.tgcn_layer` says what it computes.

    Raises:
        IndexError: a window does not lie in the series; looked at on the CPU only.
    """
    convs = [param.contiguous() for param in conv_params]
    gates = [param.contiguous() for param in gate_params]
    weight = None if edge_weight is None or (gat and not edge) else edge_weight.contiguous()
    save = rules.is_recorded(x, weight, *convs, *gates)
    flags = (conv_layers, gat, edge, between, sequence)
    extra = (rules.allows_tf32(x), starts, steps)
    if starts is not None and not torch.compiler.is_compiling():
        with rules.windows_outside():
            return _run(x, csr, weight, convs, gates, flags, save, extra)
    return _run(x, csr, weight, convs, gates, flags, save, extra)


def _run(
    x: Tensor,
    csr: Sequence[Tensor],
    weight: Tensor | None,
    convs: list[Tensor],
    gates: list[Tensor],
    flags: tuple[Any, ...],
    save: bool,
    extra: tuple[bool, Tensor | None, int],
) -> Tensor:
    if save and not torch.compiler.is_compiling():
        lengths = len(convs), len(gates)
        return _EagerLayer.apply(flags, extra, tuple(csr), lengths, x, weight, *convs, *gates)  # type: ignore[no-any-return, no-untyped-call]
    arguments = (x, list(csr), weight, convs, gates, *flags, save, *extra)
    return rules.call_unrecorded(torch.ops.hiermt.tgcn_layer.default, *arguments)[0]  # type: ignore[no-any-return]


class _EagerLayer(torch.autograd.Function):
    """The registered rule without its handling of nested lists, which costs 0.2 ms a layer in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, flags: Any, extra: Any, csr: Any, lengths: Any, x: Tensor, weight: Tensor | None, *params: Tensor
    ) -> Tensor:
        convs, gates = list(params[: lengths[0]]), list(params[lengths[0] :])
        operator = torch.ops.hiermt.tgcn_layer.default
        output = rules.call(operator, x, list(csr), weight, convs, gates, *flags, True, *extra)
        _save(ctx, x, csr, weight, convs, gates, flags, extra, output)
        return output[0]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None) -> tuple[Any, ...]:
        need_x, need_weight, *need_params = ctx.needs_input_grad[4:]
        convs = ctx.lengths[1]
        need = need_x, need_weight, need_params[:convs], need_params[convs:]
        d_x, d_weight, d_convs, d_gates = _gradients(ctx, d_out, *need)
        return None, None, None, None, d_x, d_weight, *d_convs, *d_gates


def _save(
    ctx: Any,
    x: Tensor,
    csr: Sequence[Tensor],
    weight: Tensor | None,
    convs: Sequence[Tensor],
    gates: Sequence[Tensor],
    flags: Sequence[Any],
    extra: Sequence[Any],
    output: tuple[Tensor, ...],
) -> None:
    out, h, saved_gates, g = output
    sequence = flags[-1]
    ctx.set_materialize_grads(False)
    ctx.flags = flags
    ctx.tf32, starts, ctx.steps = extra
    ctx.lengths = len(csr), len(convs), len(gates)
    ctx.save_for_backward(x, weight, starts, out if sequence else h, saved_gates, g, *csr, *convs, *gates)


def _gradients(
    ctx: Any,
    d_out: Tensor | None,
    need_x: bool,
    need_weight: bool,
    need_convs: list[bool],
    need_gates: list[bool],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None], list[Tensor | None]]:
    entries, convs, gates = ctx.lengths
    if d_out is None:
        return None, None, [None] * convs, [None] * gates
    x, weight, starts, h, saved_gates, g, *rest = ctx.saved_tensors
    csr, conv_params, gate_params = rest[:entries], rest[entries : entries + convs], rest[entries + convs :]
    grads = rules.call(
        torch.ops.hiermt.tgcn_layer_backward.default,
        d_out.contiguous(),
        x,
        csr,
        weight,
        conv_params,
        gate_params,
        *ctx.flags,
        h,
        saved_gates,
        g,
        need_x,
        any(need_convs),
        any(need_gates),
        need_weight,
        ctx.tf32,
        starts,
        ctx.steps,
    )

    return (
        grads[0] if need_x else None,
        grads[-1].to(x.dtype) if need_weight else None,
        rules.gradients_of(conv_params, grads[1 : 1 + convs], need_convs),
        rules.gradients_of(gate_params, grads[1 + convs : -1], need_gates),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, csr, weight, convs, gates, *flags, save, tf32, starts, steps = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.saved = save
    if save:
        _save(ctx, x, csr, weight, convs, gates, flags, (tf32, starts, steps), output)


def _backward(ctx: Any, d_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if not ctx.saved:
        raise RuntimeError("hiermt::tgcn_layer was called with save=False: it has no gradient")
    need_x, _, need_weight, need_convs, need_gates, *_ = ctx.needs_input_grad
    d_x, d_weight, convs, gates = _gradients(ctx, d_out, need_x, need_weight, need_convs, need_gates)
    return d_x, [None] * ctx.lengths[0], d_weight, convs, gates, *[None] * 9


def _fake(
    x: Tensor,
    csr: list[Tensor],
    edge_weight: Tensor | None,
    conv_params: list[Tensor],
    gate_params: list[Tensor],
    conv_layers: int,
    gat: bool,
    edge: bool,
    between: bool,
    sequence: bool,
    save: bool,
    tf32: bool,
    starts: Tensor | None,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nodes, days, hidden = x.size(0), x.size(1), conv_params[0].size(0)
    shape = (nodes, days, hidden) if starts is None else (starts.size(0) * nodes, steps, hidden)
    g = x.new_empty((nodes, days, hidden) if save else (0,))
    # CUDA computes the gates again.
    return *rules.fake_scan(x, shape, sequence, save, save and x.device.type == "cpu"), g


def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    csr: list[Tensor],
    edge_weight: Tensor | None,
    conv_params: list[Tensor],
    gate_params: list[Tensor],
    conv_layers: int,
    gat: bool,
    edge: bool,
    between: bool,
    sequence: bool,
    h: Tensor,
    gates: Tensor,
    g: Tensor,
    need_x: bool,
    need_conv: bool,
    need_gates: bool,
    need_edge_weight: bool,
    tf32: bool,
    starts: Tensor | None,
    steps: int,
) -> list[Tensor]:
    weight = x.new_empty(0) if edge_weight is None else edge_weight
    return [
        x.new_empty(x.shape if need_x else (0,)),
        *rules.fake_gradients(x, conv_params, need_conv),
        *rules.fake_gradients(x, gate_params, need_gates),
        *rules.fake_gradients(x, [weight], need_edge_weight),
    ]


def register() -> None:
    """Attaches the rules to the operators; called once, when the extension is there."""
    rules.register("tgcn_layer", _fake, _fake_backward, _setup_context, _backward)
