"""A T-GCN layer as a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hiermt.functional.arguments import (
    GATE_PARAMS,
    HEAD_PARAMS,
    Expected,
    check_length,
    gates_expected,
    prepare,
    size_of,
)
from hiermt.functional.heads import Heads, head_params_expected
from hiermt.functional.nothing import is_nothing, without_days
from hiermt.functional.options import LayerOptions
from hiermt.graph import Graph
from hiermt.presence import WINDOWS_HOLD, check_mask
from hiermt.windows import Windows, check_starts, reading_syncs


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
    present: Tensor | None = None,
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
        present (Tensor, optional): where a node is there. The others are no source, to no softmax, degree or mean of
            the step, and hold their state; their x and the weights of their edges are not read and may be NaN. Windows
            have a mask of their own.
            (default: ``None``, all)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **x:** ``[N, T, F]``, or windows of a series ``[S, D, F]`` with ``N = B * S``, node ``window * S + stock``
        - **h0:** ``[N, H]``; **present:** ``[N, T]`` bool
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`

    Raises:
        IndexError: a window does not lie in the series; looked at on the CPU only.
        ValueError: a shape or device does not fit, or the graph has weights that nothing reads.
        TypeError: dtypes differ.
    """
    options = LayerOptions(conv_layers, gat, edge, conv_activation)
    return run_layer(
        x, graph, conv_params, gate_params, options, h0, sequence=sequence, present=present, backend=backend
    )


def run_layer(
    x: Tensor | Windows,
    graph: Graph,
    conv_params: Sequence[Tensor],
    gate_params: Sequence[Tensor],
    options: LayerOptions,
    h0: Tensor | None = None,
    *,
    sequence: bool = True,
    present: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """:func:`tgcn_layer` of options that are made once."""
    given = (x, graph, conv_params, gate_params, options, h0, present, backend)
    return _run("tgcn_layer", *given, sequence=sequence)  # type: ignore[no-any-return]


def run_layer_heads(
    x: Tensor | Windows,
    graph: Graph,
    conv_params: Sequence[Tensor],
    gate_params: Sequence[Tensor],
    options: LayerOptions,
    heads: Heads,
    h0: Tensor | None = None,
    *,
    present: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """What `heads` give of the last state of :func:`run_layer`, of rows ``[N, ...]``: one operator for inference."""
    if heads.backend != backend:
        own = {"sequence": False, "present": present, "backend": backend}
        return heads.of(run_layer(x, graph, conv_params, gate_params, options, h0, **own))  # type: ignore[arg-type]
    given = (x, graph, conv_params, gate_params, options, h0, present, backend, heads.params)
    if heads.threshold is None:
        return _run("tgcn_layer_logits", *given)  # type: ignore[no-any-return]
    return _run("tgcn_layer_decision", *given, threshold=heads.threshold)  # type: ignore[no-any-return]


def _run(
    operator: str,
    x: Tensor | Windows,
    graph: Graph,
    conv_params: Sequence[Tensor],
    gate_params: Sequence[Tensor],
    options: LayerOptions,
    h0: Tensor | None,
    present: Tensor | None,
    backend: str,
    head_params: Sequence[Tensor] = (),
    **asked: Any,
) -> Any:
    check_length("gate_params", gate_params, GATE_PARAMS)
    options, conv_params = options.on(graph, conv_params)
    starts, steps = None, 0
    if isinstance(x, Windows):
        steps = check_starts(x.starts, x.steps, x.series, check_values=not reading_syncs(x.series))
        if present is not None:
            raise ValueError(WINDOWS_HOLD)
        x, starts, _, present = x
        if x.size(0) != graph.num_nodes:
            raise ValueError(f"x: windows of {x.size(0)} stocks, but the graph has {graph.num_nodes} nodes")
    state = [] if h0 is None else [h0]
    backend = check_mask(x, present, backend)

    def expected() -> list[Expected]:
        channels, hidden = size_of(x, 2, "F"), size_of(conv_params[0], 0, "H")
        nodes = size_of(x, 0, "N") if starts is None else starts.size(0) * x.size(0)
        return [
            Expected("x", ("N", "T", "F")),
            *options.expected(channels, hidden),
            *gates_expected("gate_params", channels, hidden),
            *(head_params_expected(head_params, hidden) if head_params else []),
            *[Expected("h0", (nodes, hidden))][: len(state)],
        ]

    others = [*conv_params, *gate_params, *head_params, *state]
    (series, *params), run = prepare(operator, x, others, expected, graph, backend)
    if starts is not None:
        series, starts, present, steps = without_days(series, starts, present, steps)
    # The days of a series have as many nodes as the CSR has rows.
    whole, normalized = starts is not None, present is None and not is_nothing(series)
    csr = graph.csr(options.rule, options.weighted, series.dtype, whole=whole, normalized=normalized)
    gates, end = len(conv_params), len(conv_params) + GATE_PARAMS
    return run(
        series,
        csr.tensors,
        csr.weight,
        params[:gates],
        params[gates:end],
        *([params[end : end + HEAD_PARAMS]] if head_params else []),
        None if h0 is None else params[-1],
        starts,
        present,
        steps=steps,
        conv_layers=options.conv_layers,
        between=options.between,
        **asked,
    )
