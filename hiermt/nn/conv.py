"""The graph convolutions of the cell: parameters under PyG's names, stacked with their activation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import functional
from hiermt._arguments import check_integer, check_tensor
from hiermt._tracing import NotScriptable, refuse_tracing
from hiermt.functional.convolution import run_stack
from hiermt.functional.options import LayerOptions
from hiermt.functional.projected import activate, gatv2_projected, gcn_projected
from hiermt.graph import Graph, as_graph
from hiermt.native import dispatch
from hiermt.nn.parameters import LINEAR, MATRIX, PARAMETER, Parts, all_run, has_global_hook, read, runs

# Parts in the order of the operators.
_GATV2_PARTS: Parts = (("lin_l", LINEAR), ("lin_r", LINEAR), ("att", PARAMETER), ("bias", PARAMETER))
_EDGE_PARTS: Parts = (*_GATV2_PARTS, ("lin_edge", MATRIX))
_GCN_PARTS: Parts = (("lin", MATRIX), ("bias", PARAMETER))


class GATv2Conv(nn.Module):
    r"""A GATv2 convolution with one head (arXiv 2105.14491), its parameters named as in PyG's ``GATv2Conv``.

    Args:
        in_channels (int): ``F``.
        out_channels (int): ``H``.
        edge_dim (int, optional): 1 for an edge term that reads the edge weights, or ``None``. (default: ``1``)
        backend (str): ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
    """

    def __init__(self, in_channels: int, out_channels: int, edge_dim: int | None = 1, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = dispatch.check(backend)
        self.lin_l = nn.Linear(in_channels, out_channels)
        self.lin_r = nn.Linear(in_channels, out_channels)
        self.att = nn.Parameter(torch.empty(1, 1, out_channels))
        self.lin_edge = None if edge_dim is None else nn.Linear(edge_dim, out_channels, bias=False)
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot for weights; the bias starts at zero. The random numbers are drawn in PyG's order."""
        for lin in (self.lin_l, self.lin_r):
            _glorot(lin.weight)
            bound = 1 / math.sqrt(lin.in_features) if lin.in_features else 0.0
            nn.init.uniform_(lin.bias, -bound, bound)
        if self.lin_edge is not None:
            _glorot(self.lin_edge.weight)
        _glorot(self.att)
        nn.init.zeros_(self.bias)

    def op_parameters(self) -> list[Tensor] | None:
        """The parameters in the order of the operators; ``None`` if a part was replaced."""
        return read([(self, _GATV2_PARTS if self._modules.get("lin_edge") is None else _EDGE_PARTS)])

    def forward(self, x: Tensor, edge_index: Tensor | Graph, edge_weight: Tensor | None = None) -> Tensor:
        """Convolves as PyG does; arguments and shapes are those of :meth:`GAT.forward`."""
        return _on_sequence(self, x, edge_index, edge_weight)

    def convolve(self, x: Tensor, graph: Graph, activation: str, backend: str) -> Tensor:
        """``[N, T, F] -> [N, T, H]``, and an activation that :mod:`hiermt.functional` knows."""
        params = None if has_global_hook() else self.op_parameters()
        if params is not None:
            return functional.gatv2_conv(x, graph, *params, activation=activation, backend=backend)
        lin_edge: Any = self.lin_edge
        LayerOptions(edge=lin_edge is not None).check_weights_used(graph)
        y = gatv2_projected(self.lin_l(x), self.lin_r(x), graph, lin_edge, self.att)
        return activate(y if self.bias is None else y + self.bias, activation)


class GCNConv(nn.Module):
    r"""A GCN convolution (arXiv 1609.02907), its parameters named as in PyG's ``GCNConv``.

    Args:
        in_channels (int): ``F``.
        out_channels (int): ``H``.
        backend (str): ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
    """

    def __init__(self, in_channels: int, out_channels: int, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = dispatch.check(backend)
        self.lin = nn.Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot for the weight, as PyG initialises it; the bias starts at zero."""
        _glorot(self.lin.weight)
        nn.init.zeros_(self.bias)

    def op_parameters(self) -> list[Tensor] | None:
        """The parameters in the order of the operators; ``None`` if a part was replaced."""
        return read([(self, _GCN_PARTS)])

    def forward(self, x: Tensor, edge_index: Tensor | Graph, edge_weight: Tensor | None = None) -> Tensor:
        """Convolves as PyG does; arguments and shapes are those of :meth:`GCN.forward`."""
        return _on_sequence(self, x, edge_index, edge_weight)

    def convolve(self, x: Tensor, graph: Graph, activation: str, backend: str) -> Tensor:
        """``[N, T, F] -> [N, T, H]``, and an activation that :mod:`hiermt.functional` knows."""
        params = None if has_global_hook() else self.op_parameters()
        if params is not None:
            return functional.gcn_conv(x, graph, *params, activation=activation, backend=backend)
        y = gcn_projected(self.lin(x), graph)
        return activate(y if self.bias is None else y + self.bias, activation)


# The methods that a kernel of a whole stack replaces. A patched or overridden method is a different object.
_CONV_FORWARDS = {True: GATv2Conv.forward, False: GCNConv.forward}


class _ConvStack(NotScriptable, nn.Module):
    """Base of GAT and GCN: convolutions with leaky_relu(0.01) between them, or after each."""

    options: LayerOptions

    def __init__(self, convs: list[Any], options: LayerOptions, backend: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.options = options
        self.backend = backend

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "options" not in state:  # pickled by an earlier version
            activation = self.__dict__.pop("conv_activation")
            self.options = LayerOptions(len(self.convs), isinstance(self, GAT), state.get("edge", False), activation)
            self.__dict__.pop("edge", None)

    @property
    def backend(self) -> str:
        """``"auto"``, ``"native"`` or ``"reference"``; assign to change it."""
        return self._backend

    @backend.setter
    def backend(self, backend: str) -> None:
        self._backend = dispatch.check(backend)
        for conv in self.convs:
            if isinstance(conv, (GATv2Conv, GCNConv)):
                conv.backend = self._backend

    def parts(self) -> list[tuple[nn.Module, Parts]] | None:
        """The parts of all convolutions; ``None`` if a convolution was replaced."""
        stack: Any = self.convs if (found := self._modules.get("convs")) is None else found
        options, forward = self.options, _CONV_FORWARDS[self.options.gat]
        names = (_EDGE_PARTS if options.edge else _GATV2_PARTS) if options.gat else _GCN_PARTS
        checked, parts = [], []
        for conv in stack._modules.values():
            if options.edge != (conv._modules.get("lin_edge") is not None):
                return None
            checked.append((conv, forward))
            parts.append((conv, names))
        if len(parts) != options.conv_layers:
            # Its user has added or removed convolutions.
            self.options = replace(options, conv_layers=len(parts))
        return parts if all_run(checked) else None

    def op_parameters(self) -> list[Tensor] | None:
        """The parameters of all convolutions in the order of the operators; ``None`` if a part was replaced."""
        parts = self.parts()
        return None if parts is None else read(parts)

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
        return _on_sequence(self, x, edge_index, edge_weight)

    def convolve(self, x: Tensor, graph: Graph, activation: str, backend: str) -> Tensor:
        """``[N, T, F] -> [N, T, H]``: one call of the operator, or one call a convolution if a part was replaced."""
        hooked = has_global_hook()
        params = None if hooked else self.op_parameters()
        if params is not None:
            return run_stack(x, graph, params, self.options, activation=activation, backend=backend)
        for i, conv in enumerate(self.convs):
            last = i == len(self.convs) - 1
            inner = activation if last and self.options.between else "leaky_relu"
            if not hooked and runs(conv, _CONV_FORWARDS[self.options.gat]):
                x = conv.convolve(x, graph, inner, backend)  # type: ignore[operator]
            else:
                x = activate(step_by_step(conv, x, graph), inner)
        return x


def step_by_step(module: nn.Module, x: Tensor, graph: Graph) -> Tensor:
    """Calls a module with the signature of a PyG convolution for each time step of ``[N, T, F]``."""
    edge_index, edge_weight = graph.edges(x.size(0) // max(graph.num_nodes, 1))
    if x.size(1) == 0:
        return module(x.new_zeros(x.size(0), x.size(2)), edge_index, edge_weight).unsqueeze(1)[:, :0]  # type: ignore[no-any-return]
    return torch.stack([module(step, edge_index, edge_weight) for step in x.unbind(1)], dim=1)


def _on_sequence(module: Any, x: Tensor, edge_index: Tensor | Graph, edge_weight: Tensor | None) -> Tensor:
    """Checks the arguments of a convolution, flattens x to ``[N, T, F]``, convolves, and restores the shape."""
    check_tensor("x", x)
    refuse_tracing(x.size(-1))
    if x.dim() not in (2, 3, 4):
        raise ValueError(f"x: expected [N, F], [N, T, F] or [B, N, T, F], got {list(x.shape)}")
    lead, backend = x.shape[:-1], getattr(module, "backend", "auto")
    graph = as_graph(edge_index, edge_weight, x.size(-2 if x.dim() == 2 else -3), backend)
    if x.dim() == 2:
        y = x.unsqueeze(1)
    else:
        y = x if x.dim() == 3 else x.reshape(x.size(0) * x.size(1), *x.shape[2:])
    y = module.convolve(y, graph, "none", backend)
    return y.reshape(*lead, y.size(-1))  # type: ignore[no-any-return]


class GAT(_ConvStack):
    r"""A stack of GATv2 convolutions, one head each (arXiv 2105.14491).

    Args:
        in_channels (int): ``F``.
        hidden_size (int): ``H``.
        conv_layers, edge_dim, conv_activation, backend: as for :class:`hiermt.TGCN`.
    """

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
        options = LayerOptions.of_modules(True, conv_layers, edge_dim, conv_activation)
        sizes = _channels(in_channels, hidden_size, options.conv_layers)
        super().__init__([GATv2Conv(*pair, 1 if options.edge else None) for pair in sizes], options, backend)


class GCN(_ConvStack):
    r"""A stack of GCN convolutions (arXiv 1609.02907).

    Args:
        in_channels, hidden_size, conv_layers, conv_activation, backend: as for :class:`GAT`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        conv_layers: int = 2,
        *,
        conv_activation: str = "between",
        backend: str = "auto",
    ) -> None:
        options = LayerOptions.of_modules(False, conv_layers, None, conv_activation)
        sizes = _channels(in_channels, hidden_size, options.conv_layers)
        super().__init__([GCNConv(*pair) for pair in sizes], options, backend)


def _channels(in_channels: object, hidden_size: object, conv_layers: int) -> list[tuple[int, int]]:
    """Input and output channels of each convolution."""
    inputs = check_integer("in_channels", in_channels, 1)
    hidden = check_integer("hidden_size", hidden_size, 1)
    return [(hidden if i else inputs, hidden) for i in range(conv_layers)]


def _glorot(tensor: Tensor) -> None:
    bound = math.sqrt(6.0 / (tensor.size(-2) + tensor.size(-1)))
    nn.init.uniform_(tensor, -bound, bound)
