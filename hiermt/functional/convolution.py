"""Graph convolutions over all time steps; part of :mod:`hiermt.functional`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hiermt import reference
from hiermt._arguments import check_number
from hiermt.functional.arguments import Expected, prepare, size_of
from hiermt.functional.nothing import is_nothing
from hiermt.functional.options import ACTIVATIONS, LayerOptions
from hiermt.graph import Graph
from hiermt.presence import check_mask

# Names of the arguments of `gatv2_conv` and `gcn_conv`, for errors.
_GATV2 = ("lin_l_weight", "lin_l_bias", "lin_r_weight", "lin_r_bias", "att", "bias", "lin_edge_weight")
_GCN = ("weight", "bias")


def conv_stack(
    x: Tensor,
    graph: Graph,
    conv_params: Sequence[Tensor],
    *,
    conv_layers: int = 2,
    gat: bool = True,
    edge: bool = True,
    conv_activation: str = "between",
    activation: str = "none",
    loop_weight: float = 1.0,
    present: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""A stack of graph convolutions over all time steps at once.

    Args:
        x (Tensor): node features.
        graph (Graph): edges and weights.
        conv_params (sequence of Tensor): convolution after convolution; GATv2: ``lin_l.weight, lin_l.bias,
            lin_r.weight, lin_r.bias, att, bias`` and, if `edge`, ``lin_edge.weight``; GCN: ``lin.weight, bias``.
        conv_layers (int): number of convolutions. (default: ``2``)
        gat (bool): GATv2, or GCN. (default: ``True``)
        edge (bool): whether each GATv2 has an edge term. (default: ``True``)
        conv_activation (str): leaky_relu (slope 0.01) ``"between"`` the convolutions or ``"after"`` each.
            (default: ``"between"``)
        activation (str): ``"none"``, ``"leaky_relu"`` (slope 0.01; not where that is there already) or ``"sigmoid"``,
            behind all of it. (default: ``"none"``)
        loop_weight (float): weight of the self loop that a GCN adds to a node without one: 2 as PyG's
            ``improved=True`` with edge weights, 0 as its ``add_self_loops=False``. (default: ``1.0``)
        present (Tensor, optional): where a node is there. The others are no source, to no softmax, degree or mean of
            the step, and their rows of the result are zero; their x and the weights of their edges are not read and
            may be NaN.
            (default: ``None``, all)
        backend (str): implementation: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)

    Shapes:
        - **x:** ``[N, T, F]``; **present:** ``[N, T]`` bool
        - **returns:** ``[N, T, H]``

    Raises:
        ValueError: a shape or device does not fit, or the graph has weights that nothing reads.
        TypeError: dtypes differ.
    """
    options = LayerOptions(conv_layers, gat, edge, conv_activation)
    return run_stack(
        x,
        graph,
        conv_params,
        options,
        activation=activation,
        loop_weight=loop_weight,
        present=present,
        backend=backend,
    )


def gatv2_conv(
    x: Tensor,
    graph: Graph,
    lin_l_weight: Tensor,
    lin_l_bias: Tensor,
    lin_r_weight: Tensor,
    lin_r_bias: Tensor,
    att: Tensor,
    bias: Tensor,
    lin_edge_weight: Tensor | None = None,
    *,
    activation: str = "none",
    present: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""GATv2 convolution with one head over all time steps at once (arXiv 2105.14491; PyG ``GATv2Conv``).

    Args:
        x (Tensor): node features.
        graph (Graph): edges and weights; the weights are read through `lin_edge_weight`.
        lin_l_weight, lin_l_bias (Tensor): projection of the source, which is also the message.
        lin_r_weight, lin_r_bias (Tensor): projection of the target.
        att (Tensor): attention vector.
        bias (Tensor): added to the result.
        lin_edge_weight (Tensor, optional): projection of the edge weight. (default: ``None``, no edge term)
        activation (str): ``"none"``, ``"leaky_relu"`` (slope 0.01) or ``"sigmoid"``. (default: ``"none"``)
        present (Tensor, optional): as for :func:`conv_stack`. (default: ``None``)
        backend (str): implementation: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)

    Shapes:
        - **x:** ``[N, T, F]``; projections ``[H, F]`` with biases ``[H]``; att ``[1, 1, H]``; edge ``[H, 1]``;
          present ``[N, T]``
        - **returns:** ``[N, T, H]``

    Raises:
        ValueError: a shape or device does not fit, or the graph has weights and `lin_edge_weight` is missing.
        TypeError: dtypes differ.
    """
    params = [lin_l_weight, lin_l_bias, lin_r_weight, lin_r_bias, att, bias]
    edge = [] if lin_edge_weight is None else [lin_edge_weight]
    options = LayerOptions(1, True, bool(edge))
    return run_stack(x, graph, params + edge, options, _GATV2, activation=activation, present=present, backend=backend)


def gcn_conv(
    x: Tensor,
    graph: Graph,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str = "none",
    loop_weight: float = 1.0,
    present: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""GCN convolution over all time steps at once (arXiv 1609.02907; PyG ``GCNConv``).

    Args:
        x (Tensor): node features.
        graph (Graph): edges and weights; without weights each edge counts 1.
        weight, bias (Tensor): projection, and what is added to the result.
        activation (str): ``"none"``, ``"leaky_relu"`` (slope 0.01) or ``"sigmoid"``. (default: ``"none"``)
        loop_weight (float): weight of the self loop that a GCN adds to a node without one: 2 as PyG's
            ``improved=True`` with edge weights, 0 as its ``add_self_loops=False``. (default: ``1.0``)
        present (Tensor, optional): as for :func:`conv_stack`. (default: ``None``)
        backend (str): implementation: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)

    Shapes:
        - **x:** ``[N, T, F]``; weight ``[H, F]``; bias ``[H]``; present ``[N, T]``
        - **returns:** ``[N, T, H]``

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: dtypes differ.
    """
    options = LayerOptions(1, False)
    params = [weight, bias]
    return run_stack(
        x,
        graph,
        params,
        options,
        _GCN,
        activation=activation,
        loop_weight=loop_weight,
        present=present,
        backend=backend,
    )


def run_stack(
    x: Tensor,
    graph: Graph,
    conv_params: Sequence[Tensor],
    options: LayerOptions,
    names: Sequence[str] = (),
    *,
    activation: str = "none",
    loop_weight: float = 1.0,
    present: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """:func:`conv_stack` of options that are made once; `names` are those of the parameters in errors."""
    options, conv_params = options.on(graph, conv_params)
    last = _last_activation(options, activation)
    if loop_weight != 1.0:
        loop_weight = check_number("loop_weight", loop_weight, 0.0)
        if options.gat:
            raise ValueError(
                "loop_weight: expected 1.0 with a GATv2, whose self loops get the mean of a node's incoming weights, "
                f"got {loop_weight}"
            )

    backend = check_mask(x, present, backend)

    def expected() -> list[Expected]:
        channels, hidden = size_of(x, 2, "F"), size_of(conv_params[0], 0, "H")
        return [Expected("x", ("N", "T", "F")), *options.expected(channels, hidden, names)]

    (sequence, *params), run = prepare("conv_stack", x, conv_params, expected, graph, backend)
    normalized = present is None and not is_nothing(sequence)
    csr = graph.csr(options.rule, options.weighted, sequence.dtype, loop_weight=loop_weight, normalized=normalized)
    return run(  # type: ignore[no-any-return]
        sequence, csr.tensors, csr.weight, params, present, conv_layers=options.conv_layers, activation=last
    )


def _last_activation(options: LayerOptions, activation: str) -> int:
    """The operator's number for what follows the last convolution."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if options.between:
        return ACTIVATIONS[activation]
    if activation == "leaky_relu":
        raise ValueError("activation: conv_activation='after' has a leaky_relu behind the last convolution already")
    return reference.LEAKY_RELU if activation == "none" else reference.LEAKY_SIGMOID
