"""The twin of ``hiermt::tgcn_layer``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hiermt.reference.convolution import LEAKY_SIGMOID, SIGMOID, conv_stack
from hiermt.reference.scan import gated_scan, gated_scan_windows


def tgcn_layer(
    x: Tensor,
    csr: Sequence[Tensor],
    edge_weight: Tensor | None,
    conv_params: Sequence[Tensor],
    gate_params: Sequence[Tensor],
    starts: Tensor | None = None,
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
        gate_params (sequence of Tensor): the parameters of :func:`gated_scan`.
        starts (Tensor, optional): first day of each window, if the scan runs over windows of `steps` days of x, as in
            :func:`gated_scan_windows`. (default: ``None``)
        steps (int): ``T`` of the windows. (default: ``0``)
        between (bool): leaky_relu between the convolutions only, or after the last one too.
        sequence (bool): return every state, or only the last.

    Shapes:
        - **x:** ``[N, T, F]``, or ``[S, D, F]`` with `starts` ``[B]`` int64, where ``N`` is ``B * S``
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`
    """
    activation = SIGMOID if between else LEAKY_SIGMOID
    g = conv_stack(x, csr, edge_weight, conv_params, conv_layers=conv_layers, activation=activation)
    if starts is not None:
        return gated_scan_windows(x, g, starts, steps, gate_params, sequence)
    return gated_scan(x, g, None, gate_params, sequence)
