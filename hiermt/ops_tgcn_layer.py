"""``hiermt::tgcn_layer``: the native operator, its gradient, and its shapes for tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from hiermt import ops_rules


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
) -> Tensor:
    """One T-GCN layer; :func:`hiermt.reference.tgcn_layer` says what it computes."""
    convs = [param.contiguous() for param in conv_params]
    gates = [param.contiguous() for param in gate_params]
    weight = None if edge_weight is None or (gat and not edge) else edge_weight.contiguous()
    save = torch.is_grad_enabled() and _any_requires_grad(x, weight, *convs, *gates)
    flags = (conv_layers, gat, edge, between, sequence)
    tf32 = ops_rules.allows_tf32(x)
    if save and not torch.compiler.is_compiling():
        lengths = len(convs), len(gates)
        return _EagerLayer.apply(flags, tf32, tuple(csr), lengths, x, weight, *convs, *gates)  # type: ignore[no-any-return, no-untyped-call]
    arguments = (x, list(csr), weight, convs, gates, *flags, save, tf32)
    return ops_rules.call_unrecorded(torch.ops.hiermt.tgcn_layer.default, *arguments)[0]  # type: ignore[no-any-return]


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _EagerLayer(torch.autograd.Function):
    """The registered rule without its handling of nested lists, which costs 0.2 ms a layer in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, flags: Any, tf32: bool, csr: Any, lengths: Any, x: Tensor, weight: Tensor | None, *params: Tensor
    ) -> Tensor:
        convs, gates = list(params[: lengths[0]]), list(params[lengths[0] :])
        operator = torch.ops.hiermt.tgcn_layer.default
        output = ops_rules.call(operator, x, list(csr), weight, convs, gates, *flags, True, tf32)
        _save(ctx, x, csr, weight, convs, gates, flags, tf32, output)
        return output[0]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Any, ...]:
        need_x, need_weight, *need_params = ctx.needs_input_grad[4:]
        convs = ctx.lengths[1]
        need = need_x, need_weight, need_params[:convs], need_params[convs:]
        grad_x, grad_weight, grad_convs, grad_gates = _gradients(ctx, grad_out, *need)
        return None, None, None, None, grad_x, grad_weight, *grad_convs, *grad_gates


def _save(
    ctx: Any,
    x: Tensor,
    csr: Sequence[Tensor],
    weight: Tensor | None,
    convs: Sequence[Tensor],
    gates: Sequence[Tensor],
    flags: Sequence[Any],
    tf32: bool,
    output: tuple[Tensor, ...],
) -> None:
    out, h, saved_gates, g = output
    sequence = flags[-1]
    ctx.set_materialize_grads(False)
    ctx.flags, ctx.tf32 = flags, tf32
    ctx.lengths = len(csr), len(convs), len(gates)
    ctx.save_for_backward(x, weight, out if sequence else h, saved_gates, g, *csr, *convs, *gates)


def _gradients(
    ctx: Any,
    grad_out: Tensor | None,
    need_x: bool,
    need_weight: bool,
    need_convs: list[bool],
    need_gates: list[bool],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None], list[Tensor | None]]:
    entries, convs, gates = ctx.lengths
    if grad_out is None:
        return None, None, [None] * convs, [None] * gates
    x, weight, h, saved_gates, g, *rest = ctx.saved_tensors
    csr, conv_params, gate_params = rest[:entries], rest[entries : entries + convs], rest[entries + convs :]
    grads = ops_rules.call(
        torch.ops.hiermt.tgcn_layer_backward.default,
        grad_out.contiguous(),
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
    )

    def wanted(found: list[Tensor], params: list[Tensor], need: list[bool]) -> list[Tensor | None]:
        triples = zip(found, params, need, strict=True)
        return [
            None if not needed else grad if grad.dtype == param.dtype else grad.to(param.dtype)
            for grad, param, needed in triples
        ]

    return (
        grads[0] if need_x else None,
        grads[-1].to(x.dtype) if need_weight else None,
        wanted(grads[1 : 1 + convs], conv_params, need_convs),
        wanted(grads[1 + convs : -1], gate_params, need_gates),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, csr, weight, convs, gates, *flags, save, tf32 = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.saved = save
    if save:
        _save(ctx, x, csr, weight, convs, gates, flags, tf32, output)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if not ctx.saved:
        raise RuntimeError("hiermt::tgcn_layer was called with save=False: it has no gradient")
    need_x, _, need_weight, need_convs, need_gates, *_ = ctx.needs_input_grad
    grad_x, grad_weight, convs, gates = _gradients(ctx, grad_out, need_x, need_weight, need_convs, need_gates)
    return grad_x, [None] * ctx.lengths[0], grad_weight, convs, gates, *[None] * 7


def _double_backward(ctx: Any, *grads: Any) -> NoReturn:
    raise NotImplementedError("hiermt.tgcn_layer has no second derivative; use backend='reference' for double backward")


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nodes, steps, hidden = x.size(0), x.size(1), conv_params[0].size(0)

    def empty(*shape: int, wanted: bool) -> Tensor:
        return x.new_empty(shape if wanted else (0,))

    h = empty(nodes, steps, hidden, wanted=sequence or save)
    last = empty(nodes, hidden, wanted=not sequence)
    gates = empty(nodes, steps, 3, hidden, wanted=save and x.device.type == "cpu")  # CUDA computes them again
    g = empty(nodes, steps, hidden, wanted=save)
    return (h, last, gates, g) if sequence else (last, h, gates, g)


def _fake_backward(
    grad_out: Tensor,
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
) -> list[Tensor]:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32

    def like(tensor: Tensor | None, wanted: bool) -> Tensor:
        shape = tensor.shape if tensor is not None and wanted else (0,)
        return x.new_empty(shape, dtype=compute)

    return [
        x.new_empty(x.shape if need_x else (0,)),
        *(like(param, need_conv) for param in conv_params),
        *(like(param, need_gates) for param in gate_params),
        like(edge_weight, need_edge_weight),
    ]


def register() -> None:
    """Attaches the rules to the operators; called once, when the extension is there."""
    torch.library.register_fake("hiermt::tgcn_layer", _fake)
    torch.library.register_fake("hiermt::tgcn_layer_backward", _fake_backward)
    torch.library.register_autograd("hiermt::tgcn_layer", _backward, setup_context=_setup_context)
    torch.library.register_autograd("hiermt::tgcn_layer_backward", _double_backward)
    ops_rules.register_autocast("tgcn_layer")
