"""The twin of ``hiermt::tgcn_layer``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hiermt.reference.convolution import LEAKY_SIGMOID, SIGMOID, conv_stack
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
