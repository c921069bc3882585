"""The T-GCN backbone: cells over a sequence, and a linear on the last state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import windows as gather
from hiermt._arguments import check_integer, check_tensor
from hiermt._tracing import recorded, refuse_tracing
from hiermt.data.feature_names import FeatureNames
from hiermt.functional.options import LayerOptions
from hiermt.graph import Graph, as_graph
from hiermt.native import dispatch
from hiermt.nn.cell import TGCNCell, cell_parameters
from hiermt.nn.conv import GAT, GCN
from hiermt.nn.pretrained import Pretrained
from hiermt.windows import Windows

LAYOUTS = ("NTF", "NFT")


class _Assumed(str):
    """A default value, told by identity from an equal string that the caller passed."""


ASSUMED_NTF = _Assumed("NTF")


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
        backend (str): implementation: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
    """

    # Whether `layout` is the default. A class attribute, because models pickled by earlier versions lack it.
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
        layout: str = ASSUMED_NTF,
        feature_names: Sequence[str] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        in_channels = check_integer("in_channels", in_channels, 1)
        hidden_size = check_integer("hidden_size", hidden_size, 1)
        out_channels = check_integer("out_channels", out_channels, 1)
        layers_nb = check_integer("layers_nb", layers_nb, 1)
        options = LayerOptions.of_modules(use_gat, conv_layers, edge_dim, conv_activation).module_arguments
        if layout not in LAYOUTS:
            raise ValueError(f"layout: expected 'NTF' or 'NFT', got {layout!r}")
        if output_activation is not None and not isinstance(output_activation, nn.Module):
            raise TypeError(f"output_activation: expected a Module such as nn.Sigmoid(), got {output_activation!r}")
        self.in_channels, self.out_channels, self.hidden_size = in_channels, out_channels, hidden_size
        self.layout_assumed = layout is ASSUMED_NTF
        self.layout = layout = str(layout)
        self._backend = backend
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "hidden_size": hidden_size,
            "layers_nb": layers_nb,
            **options,
            "layout": layout,
        }
        self.feature_names = feature_names
        self.cells = nn.ModuleList(
            TGCNCell(in_channels if i == 0 else hidden_size, hidden_size, **options, backend=backend)
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
        self._backend = dispatch.check(backend)
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
        # A module put in place of the linear may read more than the last dimension.
        return self.out(h.flatten(0, 1)).unflatten(0, h.shape[:2])  # type: ignore[no-any-return]

    def last_state(self, x: Tensor | Windows, edge_index: Tensor | Graph, edge_weight: Tensor | None = None) -> Tensor:
        """State of the last cell after the last step: as :meth:`forward`, before the output linear."""
        cells = self._cells()
        params = cell_parameters(cells)
        if isinstance(x, Windows):
            if params is not None:
                return self._last_state_of_windows(x, edge_index, edge_weight, params)
            x = x.gather().transpose(-1, -2) if self.layout == "NFT" else x.gather()
        x = self._time_before_channels(x)
        graph = as_graph(edge_index, edge_weight, x.size(-3), self._backend)
        h = x if x.dim() == 3 else x.reshape(x.size(0) * x.size(1), *x.shape[2:])
        if params is not None:
            for i, cell in enumerate(cells):
                h = cell.run_sequence(h, graph, params[i], sequence=i < len(cells) - 1)
        else:
            h = self._step_by_step(h, graph)
        return h if x.dim() == 3 else h.reshape(*x.shape[:-2], self.hidden_size)

    def _step_by_step(self, x: Tensor, graph: Graph) -> Tensor:
        """Calls the cells one time step after the other, as the published model does."""
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
        check_tensor("x.series", x.series)
        if x.series.dim() != 3 or x.series.size(2) != self.in_channels:
            raise ValueError(f"x: expected windows of a series [N, D, {self.in_channels}], got {list(x.series.shape)}")
        graph = as_graph(edge_index, edge_weight, x.series.size(0), self._backend)
        # Under torch.compile and on a GPU, process the whole series: the number of distinct days is not known without
        # a sync. On a GPU, a series longer than all windows together is gathered instead.
        h: Tensor | Windows = x
        if not recorded():
            if not gather.reading_syncs(x.series):
                h = x.shared()
            elif x.series.size(1) > x.starts.size(0) * x.steps:
                h = x.gather(check=False).flatten(0, 1)
        cells = self._cells()
        for i, cell in enumerate(cells):
            h = cell.run_sequence(h, graph, params[i], sequence=i < len(cells) - 1)
        return h.reshape(x.starts.size(0), graph.num_nodes, self.hidden_size)  # type: ignore[union-attr]

    def _cells(self) -> list[TGCNCell]:
        # The truth of a ModuleList is a call in Python.
        cells = self.cells if (found := self._modules.get("cells")) is None else found
        return list(cells._modules.values())  # type: ignore[arg-type]

    def _time_before_channels(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: expected a floating point Tensor, got {x.dtype if isinstance(x, Tensor) else type(x)}")
        dims = "T, F" if self.layout == "NTF" else "F, T"
        if x.dim() not in (3, 4):
            raise ValueError(f"x: expected [N, {dims}] or [B, N, {dims}], got {list(x.shape)}")
        found, other = (x.size(-1), x.size(-2)) if self.layout == "NTF" else (x.size(-2), x.size(-1))
        refuse_tracing(found)
        if found != self.in_channels:
            expected = f"[N, {dims}] with F = {self.in_channels} for layout='{self.layout}'"
            message = f"x: expected {expected}, got {list(x.shape)}"
            if other == self.in_channels:
                swapped = LAYOUTS[self.layout == "NTF"]
                message += f"; this looks like layout='{swapped}': build the model with it, or pass x.transpose(-1, -2)"
            raise ValueError(message)
        # Comparing the two sizes would make a compiler specialise on their equality.
        if self.layout_assumed and not torch.compiler.is_compiling() and other == found > 1:
            self._warn_of_layout(x, dims)
        return x if self.layout == "NTF" else x.transpose(-1, -2)

    def _warn_of_layout(self, x: Tensor, dims: str) -> None:
        self.layout_assumed = False
        swapped = LAYOUTS[self.layout == "NTF"]
        warnings.warn(
            f"x: {list(x.shape)} fits both layouts and is read as [..., {dims}], the default; build the model with "
            f"layout={self.layout!r} to confirm it, or with layout={swapped!r} to swap them",
            stacklevel=2,
        )
