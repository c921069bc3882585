"""Single graph convolutions, their parameters under PyG's names."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import functional
from hiermt._arguments import check_tensor
from hiermt._tracing import refuse_tracing
from hiermt.functional.options import LayerOptions
from hiermt.functional.projected import activate, gatv2_attention, gatv2_projected, gcn_projected
from hiermt.graph import Graph, as_graph
from hiermt.native import dispatch
from hiermt.nn.parameters import LINEAR, MATRIX, PARAMETER, Parts, has_global_hook, read, reset

# Parts in the order of the operators.
GATV2_PARTS: Parts = (("lin_l", LINEAR), ("lin_r", LINEAR), ("att", PARAMETER), ("bias", PARAMETER))
EDGE_PARTS: Parts = (*GATV2_PARTS, ("lin_edge", MATRIX))
GATV2_PARTS_WITHOUT_BIAS: Parts = (("lin_l", MATRIX), ("lin_r", MATRIX), ("att", PARAMETER))
EDGE_PARTS_WITHOUT_BIAS: Parts = (*GATV2_PARTS_WITHOUT_BIAS, ("lin_edge", MATRIX))
GCN_PARTS: Parts = (("lin", MATRIX), ("bias", PARAMETER))


class GATv2Conv(nn.Module):
    r"""A GATv2 convolution with one head (arXiv 2105.14491), its parameters named as in PyG's ``GATv2Conv``.

    Args:
        in_channels (int): ``F``.
        out_channels (int): ``H``.
        edge_dim (int, optional): 1 for an edge term that reads the edge weights, or ``None``. (default: ``1``)
        bias (bool): whether the projections and the result have a bias. (default: ``True``)
        backend (str): ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        edge_dim: int | None = 1,
        *,
        bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.backend = dispatch.check(backend)
        self.lin_l = nn.Linear(in_channels, out_channels, bias=bias)
        self.lin_r = nn.Linear(in_channels, out_channels, bias=bias)
        self.att = nn.Parameter(torch.empty(1, 1, out_channels))
        self.lin_edge = None if edge_dim is None else nn.Linear(edge_dim, out_channels, bias=False)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self._initialise()

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does: Glorot as in PyG; the bias starts at zero."""
        reset(*(lin for lin in (self.lin_l, self.lin_r, self.lin_edge) if lin is not None))
        self._initialise()

    def _initialise(self) -> None:
        # The random numbers are drawn in PyG's order.
        for lin in (self.lin_l, self.lin_r):
            _glorot(lin.weight)
            if lin.bias is not None:
                bound = 1 / math.sqrt(lin.in_features) if lin.in_features else 0.0
                nn.init.uniform_(lin.bias, -bound, bound)
        if self.lin_edge is not None:
            _glorot(self.lin_edge.weight)
        _glorot(self.att)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def op_parameters(self) -> list[Tensor] | None:
        """The parameters in the order of the operators; ``None`` if a part was replaced."""
        edge = self._modules.get("lin_edge") is not None
        if self._parameters.get("bias", self) is not None:
            return read([(self, EDGE_PARTS if edge else GATV2_PARTS)])
        tensors = read([(self, EDGE_PARTS_WITHOUT_BIAS if edge else GATV2_PARTS_WITHOUT_BIAS)])
        if tensors is None:
            return None
        left, right, att, *edges = tensors
        zeros = left.new_zeros(left.size(0))
        return [left, zeros, right, zeros, att, zeros, *edges]

    def forward(self, x: Tensor, edge_index: Tensor | Graph | None = None, edge_weight: Tensor | None = None) -> Tensor:
        """Convolves as PyG does; arguments and shapes are those of :meth:`GAT.forward`."""
        return on_sequence(self, x, edge_index, edge_weight)

    def convolve(self, x: Tensor, graph: Graph, activation: str, backend: str, present: Tensor | None = None) -> Tensor:
        """``[N, T, F] -> [N, T, H]``, and an activation that :mod:`hiermt.functional` knows; present ``[N, T]``."""
        params = None if has_global_hook() else self.op_parameters()
        if params is not None:
            options: dict[str, Any] = {"activation": activation, "backend": backend, "present": present}
            return functional.gatv2_conv(x, graph, *params, **options)
        y = gatv2_projected(*self._projected(x, graph, present), present)
        y = activate(y if self.bias is None else y + self.bias, activation)
        return y if present is None else torch.where(present.unsqueeze(-1), y, 0)

    def attention(self, x: Tensor, graph: Graph, present: Tensor | None = None) -> Tensor:
        """Attention of each edge, ``[N, T, F] -> [B, E, T]`` on ``B`` copies of the graph; present ``[N, T]``."""
        return gatv2_attention(*self._projected(x, graph, present), present)

    def _projected(self, x: Tensor, graph: Graph, present: Tensor | None) -> tuple[Tensor, Tensor, Graph, Any, Tensor]:
        lin_edge: Any = self.lin_edge
        LayerOptions(edge=lin_edge is not None).check_weights_used(graph)
        if present is not None:
            x = torch.where(present.unsqueeze(-1), x, 0)
        return self.lin_l(x), self.lin_r(x), graph, lin_edge, self.att


class GCNConv(nn.Module):
    r"""A GCN convolution (arXiv 1609.02907), its parameters named as in PyG's ``GCNConv``.

    Args:
        in_channels (int): ``F``.
        out_channels (int): ``H``.
        bias (bool): whether the result has a bias. (default: ``True``)
        improved (bool): with edge weights, a node without a self loop gets one of weight 2, not 1. Without edge weights
            all edges count 1, as in PyG. (default: ``False``)
        add_self_loops (bool): whether a node without a self loop gets one. (default: ``True``)
        backend (str): ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
    """

    # Of the loop that a node without one gets. A class attribute, because models pickled by earlier versions lack it.
    loop_weight = 1.0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        improved: bool = False,
        add_self_loops: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.backend = dispatch.check(backend)
        self.loop_weight = 0.0 if not add_self_loops else 2.0 if improved else 1.0
        self.lin = nn.Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self._initialise()

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does: Glorot, as in PyG; the bias starts at zero."""
        reset(self.lin)
        self._initialise()

    def _initialise(self) -> None:
        _glorot(self.lin.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def op_parameters(self) -> list[Tensor] | None:
        """The parameters in the order of the operators; ``None`` if a part was replaced."""
        if self._parameters.get("bias", self) is not None:
            return read([(self, GCN_PARTS)])
        tensors = read([(self, GCN_PARTS[:1])])
        return None if tensors is None else [tensors[0], tensors[0].new_zeros(tensors[0].size(0))]

    def forward(self, x: Tensor, edge_index: Tensor | Graph | None = None, edge_weight: Tensor | None = None) -> Tensor:
        """Convolves as PyG does; arguments and shapes are those of :meth:`GCN.forward`."""
        return on_sequence(self, x, edge_index, edge_weight)

    def loop_weight_on(self, graph: Graph) -> float:
        """Weight of the loop that a node without one gets: without edge weights PyG does not read `improved`."""
        return self.loop_weight if graph.edge_weight is not None else min(self.loop_weight, 1.0)

    def convolve(self, x: Tensor, graph: Graph, activation: str, backend: str) -> Tensor:
        """``[N, T, F] -> [N, T, H]``, and an activation that :mod:`hiermt.functional` knows."""
        params = None if has_global_hook() else self.op_parameters()
        if params is not None:
            loops = self.loop_weight_on(graph)
            return functional.gcn_conv(x, graph, *params, activation=activation, loop_weight=loops, backend=backend)
        y = gcn_projected(self.lin(x), graph, self.loop_weight_on(graph))
        return activate(y if self.bias is None else y + self.bias, activation)


def on_sequence(module: Any, x: Tensor, edge_index: Tensor | Graph | None, edge_weight: Tensor | None) -> Tensor:
    """Checks the arguments of a convolution, flattens x to ``[N, T, F]``, convolves, and restores the shape."""
    y, graph, backend = flattened(module, x, edge_index, edge_weight)
    y = module.convolve(y, graph, "none", backend)
    return y.reshape(*x.shape[:-1], y.size(-1))  # type: ignore[no-any-return]


def flattened(
    module: Any, x: Tensor, edge_index: Tensor | Graph | None, edge_weight: Tensor | None
) -> tuple[Tensor, Graph, str]:
    """``x`` as ``[N, T, F]``, the graph and the backend."""
    check_tensor("x", x)
    refuse_tracing(x.size(-1))
    if x.dim() not in (2, 3, 4):
        raise ValueError(f"x: expected [N, F], [N, T, F] or [B, N, T, F], got {list(x.shape)}")
    backend = getattr(module, "backend", "auto")
    graph = as_graph(edge_index, edge_weight, x.size(-2 if x.dim() == 2 else -3), backend)
    if x.dim() == 2:
        return x.unsqueeze(1), graph, backend
    return (x if x.dim() == 3 else x.reshape(x.size(0) * x.size(1), *x.shape[2:])), graph, backend


def _glorot(tensor: Tensor) -> None:
    bound = math.sqrt(6.0 / (tensor.size(-2) + tensor.size(-1)))
    nn.init.uniform_(tensor, -bound, bound)
