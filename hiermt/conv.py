"""The graph convolutions of the cell: parameters under PyG's names, stacked with their activation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import _backend, functional
from hiermt._parameters import linear, parameter, submodule
from hiermt.graph import Graph, as_graph

CONV_ACTIVATIONS = ("between", "after")


class GATv2Conv(nn.Module):
    """Parameters of one GATv2 convolution with one head, named as in PyG's ``GATv2Conv``.

    Args:
        in_channels (int): ``F``.
        out_channels (int): ``H``.
        edge_dim (int, optional): 1 for an edge term that reads the edge weights, or ``None``.
    """

    def __init__(self, in_channels: int, out_channels: int, edge_dim: int | None = 1) -> None:
        super().__init__()
        self.lin_l = nn.Linear(in_channels, out_channels)
        self.lin_r = nn.Linear(in_channels, out_channels)
        self.att = nn.Parameter(torch.empty(1, 1, out_channels))
        self.lin_edge = None if edge_dim is None else nn.Linear(edge_dim, out_channels, bias=False)
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot for weights, as PyG initialises them; the bias starts at zero."""
        for lin in (self.lin_l, self.lin_r, self.lin_edge):
            if lin is not None:
                _glorot(lin.weight)
        for lin in (self.lin_l, self.lin_r):
            bound = 1 / math.sqrt(lin.in_features) if lin.in_features else 0.0
            nn.init.uniform_(lin.bias, -bound, bound)
        _glorot(self.att)
        nn.init.zeros_(self.bias)

    def flat(self) -> list[Tensor]:
        """The parameters in the order the operators take them."""
        params = [*linear(self, "lin_l"), *linear(self, "lin_r"), parameter(self, "att"), parameter(self, "bias")]
        edge = submodule(self, "lin_edge")
        return params if edge is None else [*params, parameter(edge, "weight")]


class GCNConv(nn.Module):
    """Parameters of one GCN convolution, named as in PyG's ``GCNConv``.

    Args:
        in_channels (int): ``F``.
        out_channels (int): ``H``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin = nn.Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot for the weight, as PyG initialises it; the bias starts at zero."""
        _glorot(self.lin.weight)
        nn.init.zeros_(self.bias)

    def flat(self) -> list[Tensor]:
        """The parameters in the order the operators take them."""
        return [parameter(submodule(self, "lin"), "weight"), parameter(self, "bias")]


class _ConvStack(nn.Module):
    """What GAT and GCN share: convolutions with leaky_relu(0.01) between them, or after each."""

    gat: bool
    edge: bool

    def __init__(self, convs: list[Any], conv_activation: str, backend: str) -> None:
        super().__init__()
        if conv_activation not in CONV_ACTIVATIONS:
            raise ValueError(f"conv_activation: expected 'between' or 'after', got {conv_activation!r}")
        if not convs:
            raise ValueError("conv_layers: expected at least 1, got 0")
        self.convs = nn.ModuleList(convs)
        self.conv_activation = conv_activation
        self.backend = _backend.check(backend)

    def flat(self) -> list[Tensor]:
        """The parameters of all convolutions in the order the operators take them."""
        convs = submodule(self, "convs")._modules.values()
        return [tensor for conv in convs for tensor in conv.flat()]  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor, edge_index: Tensor | Graph, edge_weight: Tensor | None = None) -> Tensor:
        """Applies the stack.

        Args:
            x (Tensor): node features.
            edge_index (Tensor or Graph): edges.
            edge_weight (Tensor, optional): edge weights. (default: ``None``)

        Shapes:
            - **x:** ``[N, F]``, ``[N, T, F]`` or ``[B, N, T, F]`` with one shared graph
            - **returns:** the same with ``H`` in place of ``F``

        Raises:
            ValueError: x has another number of dimensions, or does not fit the graph or the convolutions.
        """
        if x.dim() not in (2, 3, 4):
            raise ValueError(f"x: expected [N, F], [N, T, F] or [B, N, T, F], got {list(x.shape)}")
        lead = x.shape[:-1]
        graph = as_graph(edge_index, edge_weight, x.size(-2 if x.dim() == 2 else -3), self.backend)
        if x.dim() == 2:
            y = x.unsqueeze(1)
        else:
            y = x if x.dim() == 3 else x.reshape(x.size(0) * x.size(1), *x.shape[2:])
        for i, conv in enumerate(self.convs):
            last = i == len(self.convs) - 1
            activation = "none" if last and self.conv_activation == "between" else "leaky_relu"
            y = self._convolve(y, graph, conv, activation)
        return y.reshape(*lead, y.size(-1))

    def _convolve(self, x: Tensor, graph: Graph, conv: Any, activation: str) -> Tensor:
        run: Any = functional.gatv2_conv if self.gat else functional.gcn_conv
        return run(x, graph, *conv.flat(), activation=activation, backend=self.backend)  # type: ignore[no-any-return]


class GAT(_ConvStack):
    r"""A stack of GATv2 convolutions, one head each (arXiv 2105.14491).

    Args:
        in_channels (int): ``F``.
        hidden_size (int): ``H``.
        conv_layers (int): number of convolutions. (default: ``2``)
        edge_dim (int, optional): 1, or ``None`` for no edge term. (default: ``1``)
        conv_activation (str): leaky_relu ``"between"`` the convolutions or ``"after"`` each.
            (default: ``"between"``)
        backend (str): who computes. (default: ``"auto"``)
    """

    gat = True

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        conv_layers: int = 2,
        *,
        edge_dim: int | None = 1,
        conv_activation: str = "between",
        backend: str = "auto",
    ) -> None:
        if edge_dim not in (None, 1):
            raise ValueError(f"edge_dim: expected 1 (a scalar weight per edge) or None, got {edge_dim}")
        convs = [GATv2Conv(in_channels if i == 0 else hidden_size, hidden_size, edge_dim) for i in range(conv_layers)]
        super().__init__(convs, conv_activation, backend)
        self.edge = edge_dim is not None


class GCN(_ConvStack):
    r"""A stack of GCN convolutions (arXiv 1609.02907).

    Args:
        in_channels (int): ``F``.
        hidden_size (int): ``H``.
        conv_layers (int): number of convolutions. (default: ``2``)
        conv_activation (str): leaky_relu ``"between"`` the convolutions or ``"after"`` each.
            (default: ``"between"``)
        backend (str): who computes. (default: ``"auto"``)
    """

    gat = False
    edge = False

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        conv_layers: int = 2,
        *,
        conv_activation: str = "between",
        backend: str = "auto",
    ) -> None:
        convs = [GCNConv(in_channels if i == 0 else hidden_size, hidden_size) for i in range(conv_layers)]
        super().__init__(convs, conv_activation, backend)


def _glorot(tensor: Tensor) -> None:
    bound = math.sqrt(6.0 / (tensor.size(-2) + tensor.size(-1)))
    nn.init.uniform_(tensor, -bound, bound)
