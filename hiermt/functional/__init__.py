"""The model's operations as functions: arguments checked, backend chosen, nothing stored.

Every function takes ``x`` as ``[N, T, F]`` with any strides, a :class:`hiermt.Graph`, parameters with the shapes
PyG gives them, and ``backend="auto" | "native" | "reference"``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiermt import windows as gather
from hiermt._arguments import check_number
from hiermt.functional.arguments import (
    GATE_PARAMS,
    HEAD_PARAMS,
    check_gates,
    check_length,
    check_linear,
    no_autocast,
    prepare,
)
from hiermt.functional.convolution import conv_stack as conv_stack
from hiermt.functional.convolution import gatv2_conv as gatv2_conv
from hiermt.functional.convolution import gcn_conv as gcn_conv
from hiermt.functional.loss import multitask_loss as multitask_loss
from hiermt.functional.options import ACTIVATIONS as ACTIVATIONS
from hiermt.functional.options import LayerOptions as LayerOptions
from hiermt.functional.windowed import gated_scan_windows as gated_scan_windows
from hiermt.graph import Graph
from hiermt.native import dispatch
from hiermt.native.tracing import refuse_tracing
from hiermt.windows import Windows, check_starts
from hiermt.windows import gather_windows as gather_windows


def gated_scan(
    x: Tensor,
    g: Tensor,
    h0: Tensor | None,
    gates: Sequence[Tensor],
    *,
    sequence: bool = True,
    backend: str = "auto",
) -> Tensor:
    r"""The recurrence of the T-GCN cell (arXiv 1811.05320, eqs. 3 to 6).

    Args:
        x (Tensor): input of the layer.
        g (Tensor): its graph convolution after the sigmoid (eq. 2).
        h0 (Tensor, optional): state before the first step. (default: zeros)
        gates (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        sequence (bool): return every state, or only the last. (default: ``True``)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **x:** ``[N, T, F]``; **g:** ``[N, T, H]``; **h0:** ``[N, H]``; weights ``[H, F + 2H]``, biases ``[H]``
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: dtypes differ.
    """
    hidden = check_gates(gates, x.size(-1))
    refuse_tracing(hidden)
    if g.shape != (*x.shape[:2], hidden):
        raise ValueError(
            f"g: expected [N, T, H] = {[*x.shape[:2], hidden]} for this x and these gates, got {list(g.shape)}"
        )
    if h0 is not None and h0.shape != (x.size(0), hidden):
        raise ValueError(f"h0: expected [N, H] = {[x.size(0), hidden]}, got {list(h0.shape)}")
    others = [g, *gates] if h0 is None else [g, *gates, h0]
    (x, g, *rest), native = prepare(x, others, None, backend)
    with no_autocast(x):
        run = dispatch.operator("gated_scan", native)
        return run(x, g, None if h0 is None else rest[6], rest[:6], sequence=sequence)  # type: ignore[no-any-return]


def tgcn_layer(
    x: Tensor | Windows,
    graph: Graph,
    conv_params: Sequence[Tensor],
    gate_params: Sequence[Tensor],
    *,
    conv_layers: int = 2,
    gat: bool = True,
    edge: bool = True,
    conv_activation: str = "between",
    h0: Tensor | None = None,
    sequence: bool = True,
    backend: str = "auto",
) -> Tensor:
    r"""One T-GCN layer: convolution stack, sigmoid, gated scan (arXiv 1811.05320, eqs. 2 to 6).

    Args:
        x (Tensor or Windows): input of the layer. Of windows every day of the series is convolved, and projected for
            the gates, once; the scan runs over the windows.
        graph (Graph): edges and weights.
        conv_params (sequence of Tensor): convolution after convolution; GATv2: ``lin_l.weight, lin_l.bias,
            lin_r.weight, lin_r.bias, att, bias`` and, if `edge`, ``lin_edge.weight``; GCN: ``lin.weight, bias``.
        gate_params (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        conv_layers (int): number of convolutions. (default: ``2``)
        gat (bool): GATv2, or GCN. (default: ``True``)
        edge (bool): whether each GATv2 has an edge term. (default: ``True``)
        conv_activation (str): leaky_relu (slope 0.01) ``"between"`` the convolutions or ``"after"`` each.
            (default: ``"between"``)
        h0 (Tensor, optional): state before the first step, of every window its own. (default: zeros)
        sequence (bool): return every state, or only the last. (default: ``True``)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **x:** ``[N, T, F]``, or windows of a series ``[S, D, F]`` with ``N = B * S``, node ``window * S + stock``
        - **h0:** ``[N, H]``
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`

    Raises:
        IndexError: a window does not lie in the series; looked at on the CPU only.
        ValueError: a shape or device does not fit, or the graph has weights that nothing reads.
        TypeError: dtypes differ.
    """
    options = LayerOptions(conv_layers, gat, edge, conv_activation)
    check_length("gate_params", gate_params, GATE_PARAMS)
    options.check_params(conv_params)
    options, conv_params = options.on(graph, conv_params)
    starts, steps = None, 0
    if isinstance(x, Windows):
        steps = check_starts(x.starts, x.steps, x.series, look=not gather.reading_syncs(x.series))
        x, starts, _ = x
        if x.size(0) != graph.num_nodes:
            raise ValueError(f"x: windows of {x.size(0)} stocks, but the graph has {graph.num_nodes} nodes")
    state = []
    if h0 is not None:
        expected = [x.size(0) if starts is None else starts.size(0) * x.size(0), gate_params[0].size(0)]
        if list(h0.shape) != expected:
            raise ValueError(f"h0: expected [N, H] = {expected}, got {list(h0.shape)}")
        state = [h0]
    (series, *params), native = prepare(x, [*conv_params, *gate_params, *state], graph, backend)
    options.check_weights_used(graph)
    check_linear("the first convolution", params[0], series.size(-1))
    # The days of a series have as many nodes as the CSR has rows.
    csr = graph.csr(options.rule, options.weighted, series.dtype, whole=starts is not None)
    count = len(conv_params)
    convs, gates = params[:count], params[count : count + GATE_PARAMS]
    with no_autocast(series):
        run = dispatch.operator("tgcn_layer", native)
        return run(  # type: ignore[no-any-return]
            series,
            csr.tensors,
            csr.weight,
            convs,
            gates,
            None if h0 is None else params[-1],
            starts,
            steps=steps,
            conv_layers=options.conv_layers,
            between=options.between,
            sequence=sequence,
        )


def heads(h: Tensor, params: Sequence[Tensor], *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    r"""Output linear and the two heads in one pass.

    Args:
        h (Tensor): last hidden state.
        params (sequence of Tensor): ``out.weight, out.bias, signal.weight, signal.bias, direction.weight,
            direction.bias``.
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **h:** ``[N, H]``; out ``[K, H]``; heads ``[2, K]``
        - **returns:** signal logits ``[N, 2]``, direction logits ``[N, 2]``
    """
    check_length("params", params, HEAD_PARAMS)
    (h, *params), native = prepare(h, params, None, backend)
    with no_autocast(h):
        if native:
            signal_logits, direction_logits = dispatch.operator("head_logits", True)(h, *params)
        else:
            features = torch.nn.functional.linear(h, params[0], params[1])
            signal_logits = torch.nn.functional.linear(features, params[2], params[3])
            direction_logits = torch.nn.functional.linear(features, params[4], params[5])
    return signal_logits, direction_logits


def decision(
    h: Tensor, params: Sequence[Tensor], threshold: float = 0.5, *, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""From the last hidden state to Down (0), Neutral (1) or Up (2), in one pass.

    Args:
        h (Tensor): last hidden state.
        params (sequence of Tensor): as for :func:`heads`.
        threshold (float): a row is a signal iff ``P(signal) > threshold``, in ``[0, 1]``. (default: ``0.5``)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **h:** ``[N, H]``
        - **returns:** signal logits ``[N, 2]``, direction logits ``[N, 2]``, probabilities ``[N, 4]`` (noise, signal,
          down, up), predictions ``[N]`` int64, confidences ``[N]``

    Raises:
        ValueError: `threshold` is outside ``[0, 1]``.
    """
    threshold = check_number("threshold", threshold, 0.0, 1.0)
    check_length("params", params, HEAD_PARAMS)
    (h, *params), native = prepare(h, params, None, backend)
    with no_autocast(h):
        return dispatch.operator("decision", native)(h, *params, threshold)  # type: ignore[no-any-return]


def decision_from_logits(
    signal_logits: Tensor, direction_logits: Tensor, threshold: float = 0.5, *, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The hierarchical decision from logits that are already there.

    Args:
        signal_logits, direction_logits (Tensor): logits of the two heads, with any leading dimensions.
        threshold (float): a row is a signal iff ``P(signal) > threshold``, in ``[0, 1]``. (default: ``0.5``)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **signal_logits**, **direction_logits:** ``[*, 2]``
        - **returns:** probabilities ``[*, 4]``, predictions ``[*]`` int64, confidences ``[*]``

    Raises:
        ValueError: the logits do not end in 2, or differ in shape; `threshold` is outside ``[0, 1]``.
    """
    threshold = check_number("threshold", threshold, 0.0, 1.0)
    if signal_logits.size(-1) != 2 or signal_logits.shape != direction_logits.shape:
        raise ValueError(
            f"signal_logits, direction_logits: expected two tensors [*, 2], got {list(signal_logits.shape)} and "
            f"{list(direction_logits.shape)}"
        )
    lead = signal_logits.shape[:-1]
    (signal, direction), native = prepare(
        signal_logits.reshape(-1, 2), [direction_logits.reshape(-1, 2)], None, backend
    )
    with no_autocast(signal):
        run = dispatch.operator("decision_from_logits", native)
        probabilities, predictions, confidences = run(signal, direction, threshold)
    return probabilities.reshape(*lead, 4), predictions.reshape(lead), confidences.reshape(lead)
