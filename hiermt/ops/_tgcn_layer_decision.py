"""``hiermt::tgcn_layer_decision``: a T-GCN layer and the decision of its last state in one operator, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from hiermt.ops import operator
from hiermt.ops._decision import ALL, LOGITS, decision, fake_decision
from hiermt.ops._tgcn_layer import tgcn_layer


def tgcn_layer_decision(
    x: Tensor,
    csr: Sequence[Tensor],
    edge_weight: Tensor | None,
    conv_params: Sequence[Tensor],
    gate_params: Sequence[Tensor],
    head_params: Sequence[Tensor],
    h0: Tensor | None = None,
    starts: Tensor | None = None,
    present: Tensor | None = None,
    *,
    threshold: float,
    outputs: int = ALL,
    steps: int = 0,
    conv_layers: int,
    between: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A layer and its decision; :func:`hiermt.reference.tgcn_layer_decision` says what it computes.

    Where a gradient is wanted, layer and decision are two operators. The results are bitwise the same.

    Raises:
        IndexError: a window does not lie in the series; looked at on the CPU only.
    """
    layer: dict[str, Any] = {"steps": steps, "conv_layers": conv_layers, "between": between}
    given = (x, edge_weight, conv_params, gate_params, head_params, h0)
    if torch.is_grad_enabled() and operator.requires_grad(given):
        h = tgcn_layer(x, csr, edge_weight, conv_params, gate_params, h0, starts, present, **layer, sequence=False)
        return decision(h, *head_params, threshold, outputs)  # type: ignore[arg-type,call-arg]
    return operator.infer(  # type: ignore[no-any-return]
        torch.ops.hiermt.tgcn_layer_decision.default,
        operator.masked(x, present),
        csr,
        None if edge_weight is None else edge_weight.contiguous(),
        list(map(Tensor.contiguous, conv_params)),
        list(map(Tensor.contiguous, gate_params)),
        list(map(Tensor.contiguous, head_params)),
        None if h0 is None else h0.contiguous(),
        starts,
        None if present is None else present.contiguous(),
        threshold=threshold,
        outputs=outputs,
        **layer,
        tf32=operator.allows_tf32(x),
    )


def tgcn_layer_logits(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The logits of :func:`tgcn_layer_decision` alone."""
    signal, direction, *_ = tgcn_layer_decision(*args, **options, threshold=0.5, outputs=LOGITS)
    return signal, direction


def _fake(
    x: Tensor,
    csr: list[Tensor],
    edge_weight: Tensor | None,
    conv_params: list[Tensor],
    gate_params: list[Tensor],
    head_params: list[Tensor],
    h0: Tensor | None,
    starts: Tensor | None,
    present: Tensor | None,
    *,
    threshold: float,
    outputs: int,
    **options: Any,
) -> tuple[Tensor, ...]:
    return fake_decision(x, x.size(0) if starts is None else starts.size(0) * x.size(0), outputs)


def _refuse_gradient(ctx: Any, *cotangents: Tensor | None) -> NoReturn:
    raise RuntimeError("hiermt::tgcn_layer_decision has no gradient; hiermt.ops.tgcn_layer_decision has one")


operator.register_fake("tgcn_layer_decision", _fake)
operator.register_autocast("tgcn_layer_decision")
torch.library.register_autograd("hiermt::tgcn_layer_decision", _refuse_gradient)
