"""The twins of ``hiermt::tgcn_layer`` and ``hiermt::tgcn_layer_decision``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hiermt.reference.convolution import LEAKY_SIGMOID, SIGMOID, conv_stack
from hiermt.reference.decision import decision_from_logits, head_logits
from hiermt.reference.scan import gated_scan


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
    r"""One T-GCN layer: convolution stack, sigmoid, gated scan (arXiv 1811.05320, eqs. 2 to 6).

    Args:
        x (Tensor): input of the layer.
        csr, edge_weight, conv_params, conv_layers: as for :func:`conv_stack`.
        gate_params, h0, starts, present, steps: as for :func:`gated_scan`; with `starts`, the days of the series are
            convolved.
        between (bool): leaky_relu between the convolutions only, or after the last one too.
        sequence (bool): return every state, or only the last.

    Shapes:
        - **x:** ``[N, T, F]``, or ``[S, D, F]`` with `starts` ``[B]`` int64, where ``N`` is ``B * S``
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`
    """
    activation = SIGMOID if between else LEAKY_SIGMOID
    g = conv_stack(x, csr, edge_weight, conv_params, present, conv_layers=conv_layers, activation=activation)
    return gated_scan(x, g, h0, gate_params, starts, present, steps=steps, sequence=sequence)


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
    steps: int = 0,
    conv_layers: int,
    between: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""A layer, and the hierarchical decision of its last state.

    Args:
        head_params (sequence of Tensor): as for :func:`decision`, in its order.
        threshold (float): as for :func:`decision`.
        x, csr, edge_weight, conv_params, gate_params, h0, starts, present, steps, conv_layers, between: as for
            :func:`tgcn_layer`.

    Shapes:
        - **returns:** as :func:`decision`
    """
    given = (x, csr, edge_weight, conv_params, gate_params, head_params, h0, starts, present)
    signal, direction = tgcn_layer_logits(*given, steps=steps, conv_layers=conv_layers, between=between)
    return signal, direction, *decision_from_logits(signal, direction, threshold)


def tgcn_layer_logits(
    x: Tensor,
    csr: Sequence[Tensor],
    edge_weight: Tensor | None,
    conv_params: Sequence[Tensor],
    gate_params: Sequence[Tensor],
    head_params: Sequence[Tensor],
    *state: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The first two results of :func:`tgcn_layer_decision`."""
    h = tgcn_layer(x, csr, edge_weight, conv_params, gate_params, *state, **options, sequence=False)
    return head_logits(h, *head_params)
