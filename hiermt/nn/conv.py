"""The graph convolutions of the cell: stacks of convolutions with their activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hiermt._arguments import check_integer
from hiermt._tracing import NotScriptable
from hiermt.functional.convolution import run_stack
from hiermt.functional.options import LayerOptions
from hiermt.functional.projected import activate, attention_edges
from hiermt.graph import Graph
from hiermt.native import dispatch
from hiermt.nn.convolution import (
    EDGE_PARTS,
    GATV2_PARTS,
    GCN_PARTS,
    GATv2Conv,
    GCNConv,
    flattened,
    on_sequence,
)
from hiermt.nn.parameters import Parts, all_run, has_global_hook, read, reset, runs

# The methods that a kernel of a whole stack replaces. A patched or overridden method is a different object.
_CONV_FORWARDS = {True: GATv2Conv.forward, False: GCNConv.forward}


class _ConvStack(NotScriptable, nn.Module):
    """Base of GAT and GCN: convolutions with leaky_relu(0.01) between them, or after each."""

    options: LayerOptions
    # Whether one call of the operator runs all convolutions: their sizes are equal and their options the usual ones.
    fused = True

    def __init__(self, convs: list[Any], options: LayerOptions, backend: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        sizes = {conv.att.numel() if options.gat else conv.lin.out_features for conv in convs}
        self.fused = len(sizes) == 1 and all(getattr(conv, "loop_weight", 1.0) == 1.0 for conv in convs)
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

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does."""
        reset(*self.convs)

    def parts(self) -> list[tuple[nn.Module, Parts]] | None:
        """The parts of all convolutions; ``None`` if they are called one by one."""
        stack: Any = self.convs if (found := self._modules.get("convs")) is None else found
        options, forward = self.options, _CONV_FORWARDS[self.options.gat]
        names = (EDGE_PARTS if options.edge else GATV2_PARTS) if options.gat else GCN_PARTS
        checked, parts = [], []
        for conv in stack._modules.values():
            if options.edge != (conv._modules.get("lin_edge") is not None):
                return None
            checked.append((conv, forward))
            parts.append((conv, names))
        if len(parts) != options.conv_layers:
            # Its user has added or removed convolutions.
            self.options = replace(options, conv_layers=len(parts))
        return parts if self.fused and all_run(checked) else None

    def op_parameters(self) -> list[Tensor] | None:
        """The parameters of all convolutions in the order of the operators; ``None`` if a part was replaced."""
        parts = self.parts()
        return None if parts is None else read(parts)

    def forward(self, x: Tensor, edge_index: Tensor | Graph | None = None, edge_weight: Tensor | None = None) -> Tensor:
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
        return on_sequence(self, x, edge_index, edge_weight)

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


class GAT(_ConvStack):
    r"""A stack of GATv2 convolutions, one head each (arXiv 2105.14491).

    Args:
        in_channels (int): ``F``.
        hidden_size (int or sequence of int): ``H``, or the channels of each convolution; also under the name
            `layer_sizes`. (default: ``None``, 32)
        conv_layers (int): convolutions of `hidden_size` channels. (default: ``None``, 2, or as many as there are sizes)
        bias (bool): whether the convolutions have a bias. (default: ``True``)
        edge_dim, conv_activation, backend: as for :class:`hiermt.TGCN`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int | Sequence[int] | None = None,
        conv_layers: int | None = None,
        *,
        layer_sizes: Sequence[int] | None = None,
        bias: bool = True,
        edge_dim: int | None = 1,
        conv_activation: str = "between",
        backend: str = "auto",
    ) -> None:
        pairs = _channels(in_channels, hidden_size, conv_layers, layer_sizes)
        options = LayerOptions.of_modules(True, len(pairs), edge_dim, conv_activation)
        edge = 1 if options.edge else None
        super().__init__([GATv2Conv(*pair, edge, bias=bias) for pair in pairs], options, backend)

    def attention_weights(
        self, x: Tensor, edge_index: Tensor | Graph | None = None, edge_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attention of each convolution, as PyG's ``return_attention_weights``.

        Args:
            x, edge_index, edge_weight: as for :meth:`forward`.

        Shapes:
            - **returns:** the edges that the convolutions read, ``[2, E]``: the given ones without loops, then a loop
              of each node; their coefficients ``[K, E]`` for ``K`` convolutions, ``[K, E, T]`` or ``[K, B, E, T]``

        Raises:
            TypeError: a convolution was put in place of a GATv2 by the user, and has no attention.
        """
        y, graph, _ = flattened(self, x, edge_index, edge_weight)
        alpha = torch.stack(self.attend(y, graph))
        if x.dim() == 4:
            return attention_edges(graph), alpha
        return attention_edges(graph), alpha[:, 0] if x.dim() == 3 else alpha[:, 0, :, 0]

    def attend(self, x: Tensor, graph: Graph, present: Tensor | None = None) -> list[Tensor]:
        """Attention of each convolution, ``[N, T, F] -> [B, E, T]``; present ``[N, T]``."""
        found = []
        for i, conv in enumerate(self.convs):
            if not isinstance(conv, GATv2Conv):
                raise TypeError(f"attention_weights: convs[{i}] is a {type(conv).__name__}, expected a GATv2Conv")
            found.append(conv.attention(x, graph, present))
            if i < len(self.convs) - 1:
                x = conv.convolve(x, graph, "leaky_relu", self.backend, present)
        return found


class GCN(_ConvStack):
    r"""A stack of GCN convolutions (arXiv 1609.02907).

    Args:
        in_channels, hidden_size, conv_layers, layer_sizes, bias, conv_activation, backend: as for :class:`GAT`.
        improved (bool): as for :class:`hiermt.nn.convolution.GCNConv`. (default: ``False``)
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int | Sequence[int] | None = None,
        conv_layers: int | None = None,
        *,
        layer_sizes: Sequence[int] | None = None,
        bias: bool = True,
        improved: bool = False,
        conv_activation: str = "between",
        backend: str = "auto",
    ) -> None:
        pairs = _channels(in_channels, hidden_size, conv_layers, layer_sizes)
        options = LayerOptions.of_modules(False, len(pairs), None, conv_activation)
        super().__init__([GCNConv(*pair, bias=bias, improved=improved) for pair in pairs], options, backend)


def _channels(
    in_channels: object, hidden_size: object, conv_layers: object, layer_sizes: object
) -> list[tuple[int, int]]:
    """Input and output channels of each convolution."""
    inputs = check_integer("in_channels", in_channels, 1)
    name = "hidden_size" if layer_sizes is None else "layer_sizes"
    if layer_sizes is not None and hidden_size is not None:
        raise ValueError(f"layer_sizes: hidden_size={hidden_size!r} gives the sizes already; pass one of the two")
    if isinstance(conv_layers, bool):
        raise TypeError(f"conv_layers: expected an integer, got {conv_layers}; pass a bias by name, bias={conv_layers}")
    given = hidden_size if layer_sizes is None else layer_sizes
    if isinstance(given, (list, tuple)):
        sizes = [check_integer(f"{name}[{i}]", size, 1) for i, size in enumerate(given)]
        if not sizes or conv_layers not in (None, len(sizes)):
            raise ValueError(f"{name}: expected {conv_layers or 'one or more'} sizes, got {len(sizes)}")
    else:
        hidden = 32 if given is None else check_integer(name, given, 1)
        sizes = [hidden] * (2 if conv_layers is None else check_integer("conv_layers", conv_layers, 1))
    return list(zip([inputs, *sizes], sizes, strict=False))
