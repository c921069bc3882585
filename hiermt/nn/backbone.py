"""The T-GCN backbone: cells over a sequence, and a linear on the last state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiermt import windows as gather
from hiermt._arguments import check_integer, check_number, check_tensor
from hiermt._tracing import recorded, refuse_tracing
from hiermt.data.feature_names import FeatureNames
from hiermt.functional.heads import Heads, with_lead
from hiermt.functional.options import LayerOptions
from hiermt.graph import Graph, as_graph
from hiermt.native import dispatch
from hiermt.nn.absence import Day, mask_of
from hiermt.nn.cell import TGCNCell, cell_parameters
from hiermt.nn.conv import GAT, GCN
from hiermt.nn.explain import attention_weights
from hiermt.nn.parameters import reset, unchanged
from hiermt.nn.pretrained import Pretrained
from hiermt.nn.states import check_states, last_of
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
        dropout (float): probability to drop a channel of the states that a cell hands on, to the next cell and to the
            output, in training mode. (default: ``0.0``)
        feature_names (sequence of str, optional): names of the features, in order, such as those of a
            :class:`hiermt.data.FeatureTable`. They are saved with the model, and data whose names differ are refused.
            (default: ``None``, any features)
        backend (str): implementation: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
    """

    # Whether `layout` is the default. Class attributes, because models pickled by earlier versions lack them.
    layout_assumed = False
    dropout = 0.0

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
        dropout: float = 0.0,
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
        self.dropout = check_number("dropout", dropout, 0.0, 1.0)
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "hidden_size": hidden_size,
            "layers_nb": layers_nb,
            **options,
            "layout": layout,
        }
        if self.dropout:
            self.config["dropout"] = self.dropout
        self.feature_names = feature_names
        self.cells = nn.ModuleList(
            TGCNCell(in_channels if i == 0 else hidden_size, hidden_size, **options, backend=backend)
            for i in range(layers_nb)
        )
        self._add_pooling()
        out: list[nn.Module] = [nn.Linear(hidden_size, out_channels)]
        self.out = nn.Sequential(*out, *([] if output_activation is None else [output_activation]))

    def _add_pooling(self) -> None:
        """Adds the modules between the cells and the output linear."""

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does; an output activation is left as it is."""
        reset(*self._cells(), self.out[0])

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

    def forward(
        self,
        x: Tensor | Windows,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        h: Sequence[Tensor] | Tensor | None = None,
        return_sequence: bool = False,
        return_state: bool = False,
        present: Tensor | None = None,
    ) -> Any:
        """Runs the backbone.

        A stream can go through in pieces: the states that one piece returns are the `h` of the next. The native
        operators give the same bits as for the whole stream, in float32 and float64.

        Args:
            x (Tensor or Windows): node features; windows of one series need not be copied out of it.
            edge_index (Tensor or Graph): edges.
            edge_weight (Tensor, optional): edge weights. (default: ``None``)
            h (sequence of Tensor, optional): state of each cell before the first step; also one tensor of all cells.
                (default: ``None``, zeros)
            return_sequence (bool): the result of every step, or of the last. (default: ``False``)
            return_state (bool): return the states after the last step, too. (default: ``False``)
            present (Tensor, optional): the days on which a node is there. On the others it is no source of a message
                and holds its state, and its features are not read. Windows have a mask of their own.
                (default: ``None``, all)

        Shapes:
            - **x:** ``[N, T, F]``, or ``[B, N, T, F]`` with one shared graph (``F, T`` swapped for layout ``"NFT"``)
            - **h:** ``layers_nb`` tensors ``[N, H]`` or, for a batch or windows, ``[B, N, H]``
            - **present:** ``[N, T]`` bool or, for a batch, ``[B, N, T]``
            - **returns:** ``[N, out_channels]`` or, for a batch or windows, ``[B, N, out_channels]``; ``[N, T,
              out_channels]`` or ``[B, N, T, out_channels]`` if `return_sequence`; a pair of this and the list of
              states, shaped as `h`, if `return_state`

        Raises:
            ValueError: x contradicts the layout or the graph, or a state has another shape or device than expected.
            TypeError: an argument is not a tensor, or a state has another dtype than x.
        """
        states: list[Tensor] | None = [] if return_state else None
        y = self.last_state(x, edge_index, edge_weight, h, return_sequence, states, present)
        # A module put in place of the linear may read more than the last dimension.
        y = self.out(y) if y.dim() == 2 else self.out(y.flatten(0, -2)).unflatten(0, y.shape[:-1])
        return (y, states) if return_state else y

    def last_state(
        self,
        x: Tensor | Windows,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        h: Sequence[Tensor] | Tensor | None = None,
        sequence: bool = False,
        states: list[Tensor] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """State of the last cell after the last step: as :meth:`forward`, before the output linear.

        Args:
            x, edge_index, edge_weight, h: as for :meth:`forward`.
            sequence (bool): the states of every step. (default: ``False``)
            states (list, optional): the last state of each cell is appended to it. (default: ``None``)
            present (Tensor, optional): as for :meth:`forward`. (default: ``None``)
        """
        return self._run(None, x, edge_index, edge_weight, h, sequence, states, present)  # type: ignore[no-any-return]

    def run_heads(self, heads: Heads, *given: Any, **options: Any) -> tuple[Tensor, ...]:
        """What `heads` give of the result of :meth:`last_state`, whose arguments follow."""
        found = self._run(heads, *given, **options)
        return found if isinstance(found, tuple) else heads.of(found)

    def _run(
        self,
        heads: Heads | None,
        x: Tensor | Windows,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        h: Sequence[Tensor] | Tensor | None = None,
        sequence: bool = False,
        states: list[Tensor] | None = None,
        present: Tensor | None = None,
    ) -> Any:
        """The state as :meth:`last_state` returns it, or what `heads` give of it where the last cell ends in them."""
        cells = self._cells()
        params = cell_parameters(cells)
        y: Tensor | Windows
        if isinstance(x, Windows) and params is not None:
            y, graph = self._windows(x, edge_index, edge_weight)
            lead: tuple[int, ...] = (x.starts.size(0), graph.num_nodes)
        else:
            y, graph, lead = self._sequences(x, edge_index, edge_weight)
        before = None if h is None else check_states(h, len(cells), (*lead, self.hidden_size), y)
        there = None if present is None and not isinstance(x, Windows) else mask_of(x, present, y, lead)
        if params is None:
            return self._step_by_step(y, graph, lead, before, sequence, states, there)  # type: ignore[arg-type]
        last = len(cells) - 1
        # Nothing but the heads reads the last state.
        ends = heads is not None and not sequence and states is None and not (self.dropout and self.training)
        for i, cell in enumerate(cells):
            every = i < last or sequence
            mask = None if isinstance(y, Windows) else there
            first = None if before is None else before[i]
            if heads is not None and ends and i == last and unchanged(cell, TGCNCell.run_sequence):
                found = cell.run_heads(y, graph, params[i], heads, first, mask)
                return with_lead(found, lead) if len(lead) > 1 else found
            y = cell.run_sequence(y, graph, params[i], every, first, mask)
            if states is not None:
                state = last_of(y, first) if every else y
                states.append(state.reshape(*lead, self.hidden_size))
            if self.dropout:
                y = F.dropout(y, self.dropout, self.training)
        return y.reshape(*lead, *y.shape[1:]) if len(lead) > 1 else y  # type: ignore[union-attr]

    def _step_by_step(
        self,
        x: Tensor,
        graph: Graph,
        lead: Sequence[int],
        before: list[Tensor] | None,
        sequence: bool,
        final: list[Tensor] | None,
        there: Tensor | None,
    ) -> Tensor:
        """Calls the cells one time step after the other, as the published model does."""
        edges = graph.edges(x.size(0) // max(graph.num_nodes, 1))
        cells = self._cells()
        states = before or [x.new_zeros(x.size(0), self.hidden_size)] * len(cells)
        outputs = []
        step = states[-1]
        for t, step in enumerate(x.unbind(1)):
            day = None if there is None else Day(edges, there[:, t])
            for i, cell in enumerate(cells):
                step = cell(step, *edges, states[i]) if day is None else day.run(cell, step, states[i])
                states[i] = step
                if self.dropout:
                    step = F.dropout(step, self.dropout, self.training)
            outputs.append(step)
        if final is not None:
            final += [state.reshape(*lead, self.hidden_size) for state in states]
        if sequence:
            step = torch.stack(outputs, dim=1) if outputs else x.new_zeros(x.size(0), 0, self.hidden_size)
        return step.reshape(*lead, *step.shape[1:])

    def attention_weights(
        self,
        x: Tensor | Windows,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        *,
        present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention of each convolution on each edge and day, as PyG's ``return_attention_weights``.

        Args:
            x, edge_index, edge_weight, present: as for :meth:`forward`.

        Shapes:
            - **returns:** the edges that the convolutions read, ``[2, E]``: the given ones without loops, then a loop
              of each node; their coefficients ``[layers_nb, conv_layers, E, T]``, for a batch or windows ``[layers_nb,
              conv_layers, B, E, T]``. Those on the edges into one node have the sum 1; on edges from or to a node
              that is absent on a day they are 0.

        Raises:
            TypeError: the model has no attention, as with ``use_gat=False``; or `present` is not a bool Tensor.
            ValueError: `present` has another shape, or x are windows, which hold their own mask.
        """
        y, graph, lead = self._sequences(x, edge_index, edge_weight)
        return attention_weights(self._cells(), y, graph, lead, mask_of(x, present, y, lead))

    def _sequences(
        self, x: Tensor | Windows, edge_index: Tensor | Graph | None, edge_weight: Tensor | None
    ) -> tuple[Tensor, Graph, tuple[int, ...]]:
        """``x`` as ``[N, T, F]``, the graph, and the dimensions of x before ``T`` and ``F``."""
        if isinstance(x, Windows):
            x = x.gather().transpose(-1, -2) if self.layout == "NFT" else x.gather()
        x = self._time_before_channels(x)
        graph = as_graph(edge_index, edge_weight, x.size(-3), self._backend)
        return x if x.dim() == 3 else x.reshape(x.size(0) * x.size(1), *x.shape[2:]), graph, tuple(x.shape[:-2])

    def _windows(
        self, x: Windows, edge_index: Tensor | Graph | None, edge_weight: Tensor | None
    ) -> tuple[Tensor | Windows, Graph]:
        """The windows as the first cell reads them, and the graph."""
        check_tensor("x.series", x.series)
        if x.series.dim() != 3 or x.series.size(2) != self.in_channels:
            raise ValueError(f"x: expected windows of a series [N, D, {self.in_channels}], got {list(x.series.shape)}")
        graph = as_graph(edge_index, edge_weight, x.series.size(0), self._backend)
        # Under torch.compile and on a GPU, process the whole series: the number of distinct days is not known without
        # a sync. On a GPU, a series longer than all windows together is gathered instead.
        if not recorded():
            if not gather.reading_syncs(x.series):
                return x.shared(), graph
            if x.series.size(1) > x.starts.size(0) * x.steps:
                return x.gather(check=False).flatten(0, 1), graph
        return x, graph

    def _cells(self) -> list[TGCNCell]:
        # The truth of a ModuleList is a call in Python.
        cells = self.cells if (found := self._modules.get("cells")) is None else found
        return list(cells._modules.values())  # type: ignore[arg-type]

    def _time_before_channels(self, x: Tensor) -> Tensor:
        check_tensor("x", x, "a floating point Tensor")
        if not x.is_floating_point():
            raise TypeError(f"x: expected a floating point Tensor, got {x.dtype}; use x.float()")
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
