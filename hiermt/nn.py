"""The modules people build: the convolution stacks, the T-GCN cell, the backbone and the two-headed model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import _backend, functional, gather
from hiermt._arguments import check_integer
from hiermt._feature_names import FeatureNames
from hiermt._parameters import has_global_hook, linear, runs, submodule
from hiermt._tracing import NotScriptable, refuse_tracing
from hiermt.checkpoint import Pretrained
from hiermt.conv import GAT, GCN, check_edge_dim
from hiermt.gather import Windows
from hiermt.graph import Graph, as_graph

LAYOUTS = ("NTF", "NFT")


class _Assumed(str):
    """A default that its user did not choose; told from the same string by identity."""


_NTF = _Assumed("NTF")


class TGCNCell(NotScriptable, nn.Module):
    r"""One T-GCN cell (arXiv 1811.05320): a convolution stack and three gates.

    Args:
        in_channels (int): ``F``.
        hidden_size (int): ``H``.
        use_gat (bool): GATv2 convolutions, or GCN. (default: ``True``)
        conv_layers (int): convolutions in the stack. (default: ``2``)
        edge_dim (int, optional): 1, or ``None`` for GATv2 without edge weights. (default: ``1``)
        conv_activation (str): leaky_relu ``"between"`` the convolutions or ``"after"`` each.
            (default: ``"between"``)
        backend (str): who computes: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
    """

    gcn: GAT | GCN

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        use_gat: bool = True,
        *,
        conv_layers: int = 2,
        edge_dim: int | None = 1,
        conv_activation: str = "between",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        in_channels = check_integer("in_channels", in_channels, 1)
        hidden_size = check_integer("hidden_size", hidden_size, 1)
        self.in_channels, self.hidden_size = in_channels, hidden_size
        if use_gat:
            self.gcn = GAT(
                in_channels,
                hidden_size,
                conv_layers,
                edge_dim=edge_dim,
                conv_activation=conv_activation,
                backend=backend,
            )
        else:
            self.gcn = GCN(in_channels, hidden_size, conv_layers, conv_activation=conv_activation, backend=backend)
        self.lin_u = nn.Linear(in_channels + 2 * hidden_size, hidden_size)
        self.lin_r = nn.Linear(in_channels + 2 * hidden_size, hidden_size)
        self.lin_c = nn.Linear(in_channels + 2 * hidden_size, hidden_size)

    def gates(self) -> list[Tensor] | None:
        """The gate parameters in the order the operators take them; ``None`` if a gate computes something else."""
        u, r, c = linear(self, "lin_u"), linear(self, "lin_r"), linear(self, "lin_c")
        return None if u is None or r is None or c is None else [*u, *r, *c]

    def flat(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """The parameters of the convolutions and of the gates, as :func:`hiermt.functional.tgcn_layer` takes them.

        ``None`` if the cell or one of its parts computes something else than that function: a subclass, an adapter, a
        patched ``forward``, a hook.
        """
        stack = submodule(self, "gcn")
        if not (runs(self, _FORWARDS[TGCNCell]) and runs(stack, _FORWARDS[GAT])):
            return None
        convs, gates = stack.flat(), self.gates()
        return None if convs is None or gates is None else (convs, gates)

    def forward(
        self,
        x_t: Tensor,
        edge_index: Tensor | Graph,
        edge_weight: Tensor | None = None,
        h: Tensor | None = None,
    ) -> Tensor:
        """One time step.

        Args:
            x_t (Tensor): features of this step.
            edge_index (Tensor or Graph): edges.
            edge_weight (Tensor, optional): edge weights. (default: ``None``)
            h (Tensor, optional): state before this step. (default: zeros)

        Shapes:
            - **x_t:** ``[N, F]``; **h:** ``[N, H]``
            - **returns:** ``[N, H]``
        """
        if x_t.dim() != 2 or x_t.size(1) != self.in_channels:
            raise ValueError(f"x_t: expected [N, {self.in_channels}], got {list(x_t.shape)}")
        g = torch.sigmoid(self.gcn(x_t, edge_index, edge_weight))
        gates = None if has_global_hook() else self.gates()
        if gates is not None:
            backend = getattr(self.gcn, "backend", "auto")
            return functional.gated_scan(x_t.unsqueeze(1), g.unsqueeze(1), h, gates, sequence=False, backend=backend)
        h = g.new_zeros(g.size(0), self.hidden_size) if h is None else h
        u = torch.sigmoid(self.lin_u(torch.cat([x_t, g, h], dim=-1)))
        r = torch.sigmoid(self.lin_r(torch.cat([x_t, g, h], dim=-1)))
        c = torch.tanh(self.lin_c(torch.cat([x_t, g, r * h], dim=-1)))
        return u * h + (1 - u) * c

    def run_sequence(
        self, x: Tensor | Windows, graph: Graph, params: tuple[list[Tensor], list[Tensor]], sequence: bool
    ) -> Tensor:
        """All time steps from a zero state: ``[N, T, F] -> [N, T, H]``, or ``[N, H]`` if not `sequence`.

        Of windows the node is ``window * S + stock``, and each day of the series is convolved once. `params` is what
        :meth:`flat` returned.
        """
        stack = self.gcn
        return functional.tgcn_layer(
            x,
            graph,
            *params,
            conv_layers=len(stack.convs),
            gat=stack.gat,
            edge=stack.edge,
            conv_activation=stack.conv_activation,
            sequence=sequence,
            backend=stack.backend,
        )


class TGCN(FeatureNames, Pretrained, nn.Module):
    r"""The T-GCN backbone: cells stacked over the sequence, a linear on the last state (arXiv 1811.05320).

    Args:
        in_channels (int): ``F``.
        out_channels (int): channels of the result.
        hidden_size (int): ``H``.
        layers_nb (int): number of cells. (default: ``2``)
        output_activation (Module, optional): applied to the result. (default: ``None``)
        use_gat (bool): GATv2 convolutions, or GCN. (default: ``True``)
        conv_layers (int): convolutions in each cell. (default: ``2``)
        edge_dim (int, optional): 1, or ``None`` for GATv2 without edge weights. (default: ``1``)
        conv_activation (str): leaky_relu ``"between"`` the convolutions or ``"after"`` each.
            (default: ``"between"``)
        layout (str): order of x: ``"NTF"`` or ``"NFT"``. Without it, an x that fits both warns once.
            (default: ``"NTF"``)
        feature_names (sequence of str, optional): names of the features, in order, such as those of a
            :class:`hiermt.data.FeatureTable`. They are saved with the model, and data whose names differ are refused.
            (default: ``None``, any features)
        backend (str): who computes: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
    """

    # Whether the order of x is a default; models pickled before this was kept do not have it.
    layout_assumed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_size: int,
        layers_nb: int = 2,
        output_activation: nn.Module | None = None,
        use_gat: bool = True,
        *,
        conv_layers: int = 2,
        edge_dim: int | None = 1,
        conv_activation: str = "between",
        layout: str = _NTF,
        feature_names: Sequence[str] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        in_channels = check_integer("in_channels", in_channels, 1)
        hidden_size = check_integer("hidden_size", hidden_size, 1)
        out_channels = check_integer("out_channels", out_channels, 1)
        layers_nb = check_integer("layers_nb", layers_nb, 1)
        conv_layers = check_integer("conv_layers", conv_layers, 1)
        edge_dim = check_edge_dim(edge_dim) if use_gat else None
        if layout not in LAYOUTS:
            raise ValueError(f"layout: expected 'NTF' or 'NFT', got {layout!r}")
        if output_activation is not None and not isinstance(output_activation, nn.Module):
            raise TypeError(f"output_activation: expected a Module such as nn.Sigmoid(), got {output_activation!r}")
        self.in_channels, self.out_channels, self.hidden_size = in_channels, out_channels, hidden_size
        self.layout_assumed = layout is _NTF
        self.layout = layout = str(layout)
        self._backend = backend
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "hidden_size": hidden_size,
            "layers_nb": layers_nb,
            "use_gat": use_gat,
            "conv_layers": conv_layers,
            "edge_dim": edge_dim,
            "conv_activation": conv_activation,
            "layout": layout,
        }
        self.feature_names = feature_names
        self.cells = nn.ModuleList(
            TGCNCell(
                in_channels if i == 0 else hidden_size,
                hidden_size,
                use_gat,
                conv_layers=conv_layers,
                edge_dim=edge_dim,
                conv_activation=conv_activation,
                backend=backend,
            )
            for i in range(layers_nb)
        )
        out: list[nn.Module] = [nn.Linear(hidden_size, out_channels)]
        self.out = nn.Sequential(*out, *([] if output_activation is None else [output_activation]))

    @property
    def backend(self) -> str:
        """``"auto"``, ``"native"`` or ``"reference"``; assign to change it."""
        return self._backend

    @backend.setter
    def backend(self, backend: str) -> None:
        self._backend = _backend.check(backend)
        for cell in self._cells():
            if isinstance(cell, TGCNCell) and isinstance(cell.gcn, (GAT, GCN)):
                cell.gcn.backend = backend

    def forward(self, x: Tensor | Windows, edge_index: Tensor | Graph, edge_weight: Tensor | None = None) -> Tensor:
        """Runs the backbone.

        Args:
            x (Tensor or Windows): node features; windows of one series need not be copied out of it.
            edge_index (Tensor or Graph): edges.
            edge_weight (Tensor, optional): edge weights. (default: ``None``)

        Shapes:
            - **x:** ``[N, T, F]``, or ``[B, N, T, F]`` with one shared graph (``F, T`` swapped for layout ``"NFT"``)
            - **returns:** ``[N, out_channels]`` or, for a batch or windows, ``[B, N, out_channels]``

        Raises:
            ValueError: x contradicts the layout or the graph.
        """
        h = self.last_state(x, edge_index, edge_weight)
        if h.dim() == 2:
            return self.out(h)  # type: ignore[no-any-return]
        # What its user put in place of the linear may look at more than the last dimension.
        return self.out(h.flatten(0, 1)).unflatten(0, h.shape[:2])  # type: ignore[no-any-return]

    def last_state(self, x: Tensor | Windows, edge_index: Tensor | Graph, edge_weight: Tensor | None = None) -> Tensor:
        """State of the last cell after the last step: as :meth:`forward`, before the output linear."""
        cells = self._cells()
        params = _flat(cells)
        if isinstance(x, Windows):
            if params is not None:
                return self._last_state_of_windows(x, edge_index, edge_weight, params)
            x = x.gather().transpose(-1, -2) if self.layout == "NFT" else x.gather()
        x = self._time_before_channels(x)
        graph = as_graph(edge_index, edge_weight, x.size(-3), self.backend)
        h = x if x.dim() == 3 else x.reshape(x.size(0) * x.size(1), *x.shape[2:])
        if params is not None:
            for i, cell in enumerate(cells):
                h = cell.run_sequence(h, graph, params[i], sequence=i < len(cells) - 1)
        else:
            h = self._step_by_step(h, graph)
        return h if x.dim() == 3 else h.reshape(*x.shape[:-2], self.hidden_size)

    def _step_by_step(self, x: Tensor, graph: Graph) -> Tensor:
        """The cells called one time step after the other, as the model that this one replaces does it."""
        edges = graph.edges(x.size(0) // max(graph.num_nodes, 1))
        cells = self._cells()
        states = [x.new_zeros(x.size(0), self.hidden_size)] * len(cells)
        for step in x.unbind(1):
            for i, cell in enumerate(cells):
                states[i] = step = cell(step, *edges, states[i])
        return states[-1]

    def _last_state_of_windows(
        self,
        x: Windows,
        edge_index: Tensor | Graph,
        edge_weight: Tensor | None,
        params: list[tuple[list[Tensor], list[Tensor]]],
    ) -> Tensor:
        if x.series.dim() != 3 or x.series.size(2) != self.in_channels:
            raise ValueError(f"x: expected windows of a series [N, D, {self.in_channels}], got {list(x.series.shape)}")
        graph = as_graph(edge_index, edge_weight, x.series.size(0), self.backend)
        # A compiler does not know how many days there will be, and takes all of them; so does a GPU, which nobody asks
        # unless it has to be waited for, as long as they are fewer than those of the windows one by one.
        h: Tensor | Windows = x
        if not torch.compiler.is_compiling():
            if not gather.waits(x.series):
                h = x.shared()
            elif x.series.size(1) > x.starts.size(0) * x.steps:
                h = x.gather(check=False).flatten(0, 1)
        cells = self._cells()
        for i, cell in enumerate(cells):
            h = cell.run_sequence(h, graph, params[i], sequence=i < len(cells) - 1)
        return h.reshape(x.starts.size(0), graph.num_nodes, self.hidden_size)  # type: ignore[union-attr]

    def _cells(self) -> list[TGCNCell]:
        return list(submodule(self, "cells")._modules.values())

    def _time_before_channels(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: expected a floating point Tensor, got {x.dtype if isinstance(x, Tensor) else type(x)}")
        letters = "T, F" if self.layout == "NTF" else "F, T"
        if x.dim() not in (3, 4):
            raise ValueError(f"x: expected [N, {letters}] or [B, N, {letters}], got {list(x.shape)}")
        found, other = (x.size(-1), x.size(-2)) if self.layout == "NTF" else (x.size(-2), x.size(-1))
        refuse_tracing(found)
        if found != self.in_channels:
            expected = f"[N, {letters}] with F = {self.in_channels} for layout='{self.layout}'"
            message = f"x: expected {expected}, got {list(x.shape)}"
            if other == self.in_channels:
                swapped = LAYOUTS[self.layout == "NTF"]
                message += f"; this looks like layout='{swapped}': build the model with it, or pass x.transpose(-1, -2)"
            raise ValueError(message)
        # A compiler would specialise on whether both sizes agree.
        if self.layout_assumed and not torch.compiler.is_compiling() and other == found > 1:
            self._warn_of_layout(x, letters)
        return x if self.layout == "NTF" else x.transpose(-1, -2)

    def _warn_of_layout(self, x: Tensor, letters: str) -> None:
        self.layout_assumed = False
        swapped = LAYOUTS[self.layout == "NTF"]
        warnings.warn(
            f"x: {list(x.shape)} fits both layouts and is read as [..., {letters}], as nothing else was said; build "
            f"the model with layout={self.layout!r} to confirm it, or with layout={swapped!r} if x is the other way "
            "round",
            stacklevel=2,
        )


class TGCN_HierarchicalMT(FeatureNames, Pretrained, nn.Module):
    r"""T-GCN with two heads that decide hierarchically: is there a signal, and if so, which way.

    Args:
        in_channels (int): ``F``.
        hidden_size (int): ``H``. (default: ``16``)
        layers_nb (int): number of cells. (default: ``2``)
        use_gat (bool): GATv2 convolutions, or GCN. (default: ``True``)
        conv_layers (int): convolutions in each cell. (default: ``2``)
        edge_dim (int, optional): 1, or ``None`` for GATv2 without edge weights. (default: ``1``)
        conv_activation (str): leaky_relu ``"between"`` the convolutions or ``"after"`` each.
            (default: ``"between"``)
        layout (str): order of x: ``"NTF"`` or ``"NFT"``. Without it, an x that fits both warns once.
            (default: ``"NTF"``)
        feature_names (sequence of str, optional): names of the features, in order, such as those of a
            :class:`hiermt.data.FeatureTable`. They are saved with the model, and data whose names differ are refused.
            (default: ``None``, any features)
        backend (str): who computes: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int = 16,
        layers_nb: int = 2,
        use_gat: bool = True,
        *,
        conv_layers: int = 2,
        edge_dim: int | None = 1,
        conv_activation: str = "between",
        layout: str = _NTF,
        feature_names: Sequence[str] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.tgcn_backbone = TGCN(
            in_channels,
            hidden_size,
            hidden_size,
            layers_nb,
            None,
            use_gat,
            conv_layers=conv_layers,
            edge_dim=edge_dim,
            conv_activation=conv_activation,
            layout=layout,
            backend=backend,
        )
        hidden_size = self.tgcn_backbone.hidden_size
        self.signal_head = nn.Linear(hidden_size, 2)
        self.direction_head = nn.Linear(hidden_size, 2)
        self.config = {k: v for k, v in self.tgcn_backbone.config.items() if k != "out_channels"}
        self.feature_names = feature_names

    @property
    def backend(self) -> str:
        """Who computes; assign ``"auto"``, ``"native"`` or ``"reference"`` to change it."""
        return self.tgcn_backbone.backend

    @backend.setter
    def backend(self, backend: str) -> None:
        self.tgcn_backbone.backend = backend

    def forward(
        self, x: Tensor | Windows, edge_index: Tensor | Graph, edge_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of both heads.

        Args:
            x (Tensor or Windows): node features; windows of one series need not be copied out of it.
            edge_index (Tensor or Graph): edges.
            edge_weight (Tensor, optional): edge weights. (default: ``None``)

        Shapes:
            - **x:** ``[N, T, F]``, or ``[B, N, T, F]`` with one shared graph (``F, T`` swapped for layout ``"NFT"``)
            - **returns:** signal logits and direction logits, each ``[N, 2]`` or, for a batch or windows,
              ``[B, N, 2]``

        Raises:
            ValueError: x contradicts the layout or the graph.
        """
        params = self._head_params()
        if params is None:
            return self._call_parts(x, edge_index, edge_weight)
        h = self.tgcn_backbone.last_state(x, edge_index, edge_weight)
        flat = h if h.dim() == 2 else h.reshape(-1, self.tgcn_backbone.hidden_size)
        signal, direction = functional.heads(flat, params, backend=self.backend)
        if h.dim() == 2:
            return signal, direction
        return signal.reshape(*h.shape[:-1], 2), direction.reshape(*h.shape[:-1], 2)

    def _call_parts(
        self, x: Tensor | Windows, edge_index: Tensor | Graph, edge_weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Backbone and heads called as they are."""
        backbone = self.tgcn_backbone
        if isinstance(x, Windows) and not runs(backbone, _FORWARDS[TGCN]):
            x = x.gather()
        features = backbone(x, edge_index, edge_weight)
        if features.dim() == 2:
            return self.signal_head(features), self.direction_head(features)
        lead, flat = features.shape[:-1], features.flatten(0, -2)
        return self.signal_head(flat).unflatten(0, lead), self.direction_head(flat).unflatten(0, lead)

    @torch.no_grad()
    def decide(
        self,
        x: Tensor | Windows,
        edge_index: Tensor | Graph,
        edge_weight: Tensor | None = None,
        threshold: float = 0.5,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Down (0), Neutral (1) or Up (2) for every node.

        Args:
            x, edge_index, edge_weight: as for :meth:`forward`.
            threshold (float): a node has a signal iff ``P(signal) > threshold``. (default: ``0.5``)

        Shapes:
            - **returns:** predictions ``[N]`` int64, confidences ``[N]``, probabilities ``[N, 4]`` (noise, signal,
              down, up), each with a leading ``B`` if x has one
        """
        params = self._head_params() if runs(self, _FORWARDS[TGCN_HierarchicalMT]) else None
        if params is None:
            signal, direction = self(x, edge_index, edge_weight)
            probabilities, predictions, confidences = functional.decision_from_logits(
                signal, direction, threshold, backend=self.backend
            )
            return predictions, confidences, probabilities
        h = self.tgcn_backbone.last_state(x, edge_index, edge_weight)
        flat = h.reshape(-1, self.tgcn_backbone.hidden_size)
        *_, probabilities, predictions, confidences = functional.decision(flat, params, threshold, backend=self.backend)
        lead = h.shape[:-1]
        return predictions.reshape(lead), confidences.reshape(lead), probabilities.reshape(*lead, 4)

    def _head_params(self) -> list[Tensor] | None:
        """Output linear and heads as the operators take them; ``None`` if one of them computes something else."""
        backbone = submodule(self, "tgcn_backbone")
        out_layers = submodule(backbone, "out")
        if has_global_hook() or not (runs(backbone, _FORWARDS[TGCN]) and runs(out_layers, _SEQUENTIAL)):
            return None
        if len(out_layers._modules) != 1:
            return None
        out, signal, direction = linear(out_layers, "0"), linear(self, "signal_head"), linear(self, "direction_head")
        if out is None or signal is None or direction is None or signal[0].size(0) != 2 or direction[0].size(0) != 2:
            return None
        return [*out, *signal, *direction]


# The methods that a kernel stands in for, as they are here: what a user patches or overrides is another one.
_FORWARDS: dict[type, Any] = {kind: kind.forward for kind in (GAT, TGCNCell, TGCN, TGCN_HierarchicalMT)}
_SEQUENTIAL = nn.Sequential.forward


def _flat(cells: list[TGCNCell]) -> list[tuple[list[Tensor], list[Tensor]]] | None:
    """The parameters of all cells; ``None`` if one of them has to be called."""
    if has_global_hook():
        return None
    params = []
    for cell in cells:
        found = cell.flat() if isinstance(cell, TGCNCell) else None
        if found is None:
            return None
        params.append(found)
    return params
