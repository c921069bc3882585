"""The T-GCN cell with a convolution in each gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hiermt import functional
from hiermt._arguments import check_integer, check_tensor
from hiermt._tracing import NotScriptable, refuse_tracing
from hiermt.graph import Graph, as_graph
from hiermt.native import dispatch
from hiermt.nn.absence import mask_of
from hiermt.nn.convolution import GCNConv
from hiermt.nn.parameters import LINEAR, MATRIX, PARAMETER, Parts, all_run, has_global_hook, read, reset, runs
from hiermt.nn.states import check_state

_GATES = ("z", "r", "h")
_CONV: Parts = (("lin", MATRIX), ("bias", PARAMETER))
_LINEARS: Parts = tuple((f"linear_{gate}", LINEAR) for gate in _GATES)


class TGCN(NotScriptable, nn.Module):
    r"""A T-GCN cell (arXiv 1811.05320) as PyTorch Geometric Temporal computes it.

    .. math::
        z = \sigma(W_z [\mathrm{conv}_z(x), h] + b_z), \quad r = \sigma(W_r [\mathrm{conv}_r(x), h] + b_r)

        c = \tanh(W_h [\mathrm{conv}_h(x), r \odot h] + b_h), \quad h' = z \odot h + (1 - z) \odot c

    with PyG's ``GCNConv`` as conv. Constructor, call and parameters are those of
    ``torch_geometric_temporal.nn.recurrent.TGCN``. :meth:`sequence` runs all steps of a sequence in one call, which is
    faster than a loop over them.

    Args:
        in_channels (int): ``F``.
        out_channels (int): ``H``.
        improved (bool): with edge weights, a node without a self loop gets one of weight 2, not 1. Without edge weights
            all edges count 1, as in PyG. (default: ``False``)
        cached (bool): accepted; prepared graphs are always cached, and changed ones always noticed.
            (default: ``False``)
        add_self_loops (bool): whether a node without a self loop gets one. (default: ``True``)
        backend (str): implementation: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        improved: bool = False,
        cached: bool = False,
        add_self_loops: bool = True,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.in_channels = check_integer("in_channels", in_channels, 1)
        self.out_channels = check_integer("out_channels", out_channels, 1)
        self.improved, self.cached, self.add_self_loops = improved, cached, add_self_loops
        self._backend = dispatch.check(backend)
        for gate in _GATES:
            conv = GCNConv(
                self.in_channels, self.out_channels, improved=improved, add_self_loops=add_self_loops, backend=backend
            )
            self.add_module(f"conv_{gate}", conv)
            self.add_module(f"linear_{gate}", nn.Linear(2 * self.out_channels, self.out_channels))

    @property
    def backend(self) -> str:
        """``"auto"``, ``"native"`` or ``"reference"``; assign to change it."""
        return self._backend

    @backend.setter
    def backend(self, backend: str) -> None:
        self._backend = dispatch.check(backend)
        for part in self.children():
            if isinstance(part, GCNConv):
                part.backend = backend

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does."""
        reset(*self.children())

    def forward(
        self,
        X: Tensor,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        H: Tensor | None = None,
    ) -> Tensor:
        """One time step.

        Args:
            X (Tensor): features of this step.
            edge_index (Tensor or Graph): edges.
            edge_weight (Tensor, optional): edge weights. (default: ``None``, 1 each)
            H (Tensor, optional): state before this step. (default: ``None``, zeros)

        Shapes:
            - **X:** ``[N, F]``, or ``[B, N, F]`` with one shared graph; **H:** the same with ``H`` in place of ``F``
            - **returns:** the state after this step, shaped as `H`

        Raises:
            ValueError: a shape or device is another than expected.
            TypeError: an argument is not a tensor, or a dtype is another.
        """
        check_tensor("X", X)
        if X.dim() not in (2, 3) or X.size(-1) != self.in_channels:
            expected = f"[N, {self.in_channels}] or [B, N, {self.in_channels}]"
            raise ValueError(f"X: expected {expected}, got {list(X.shape)}; a sequence goes through .sequence(...)")
        return self._run(X.unsqueeze(-1), edge_index, edge_weight, H, every=False)

    def sequence(
        self,
        X: Tensor,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        H: Tensor | None = None,
        return_sequence: bool = False,
        *,
        present: Tensor | None = None,
    ) -> Tensor:
        """All time steps in one call, as a loop of ``H = cell(X[..., t], edge_index, edge_weight, H)`` over ``t``.

        Args:
            X (Tensor): features, time in the last dimension.
            edge_index, edge_weight, H: as for :meth:`forward`.
            return_sequence (bool): the state after each step, or after the last. (default: ``False``)
            present (Tensor, optional): the steps at which a node is there. At the others it is no source of a message
                and holds its state, and its features are not read. (default: ``None``, all)

        Shapes:
            - **X:** ``[N, F, T]`` or ``[B, N, F, T]``; **present:** ``[N, T]`` bool or, for a batch, ``[B, N, T]``
            - **returns:** ``[N, H]`` or ``[B, N, H]``, with a last dimension ``T`` if `return_sequence`

        Raises:
            ValueError, TypeError: as :meth:`forward`.
            NotImplementedError: there is a mask, and a part of the cell was replaced or hooked.
        """
        check_periods(X, self.in_channels)
        if present is not None:
            steps = X.flatten(0, -3).transpose(-1, -2)
            present = mask_of(X, present, steps, tuple(X.shape[:-2]))
            if not runs(self, TGCN.forward) or self._folded() is None:
                raise NotImplementedError("present: a part of this cell was replaced or hooked, which takes no mask")
        if runs(self, TGCN.forward):
            return self._run(X, edge_index, edge_weight, H, return_sequence, present)
        states = [X.new_zeros(*X.shape[:-2], self.out_channels) if H is None else H]
        for step in X.unbind(-1):
            states.append(self(step, edge_index, edge_weight, states[-1]))
        return _stacked(states[1:], states[0]) if return_sequence else states[-1]

    def each_period(
        self, x: Tensor, edge_index: Tensor | Graph | None, edge_weight: Tensor | None, h: Tensor | None
    ) -> Tensor:
        """The state after each of the steps ``[..., N, F, T]``, all of them from the state `h`: ``[..., N, T, H]``."""
        lead, steps, hidden = x.shape[:-2], x.size(-1), self.out_channels
        graph, h = self._checked(x, edge_index, edge_weight, h)
        gates = self._folded() if runs(self, TGCN.forward) else None
        if gates is None:
            before = None if h is None else h.reshape(*lead, hidden)
            found = [self(step, edge_index, edge_weight, before) for step in x.unbind(-1)]
            return torch.stack(found, dim=-2) if found else x.new_zeros(*lead, 0, hidden)
        inputs = self._inputs(x, graph).flatten(0, 1).unsqueeze(1)
        if h is not None:
            h = h.unsqueeze(1).expand(-1, steps, -1).reshape(-1, hidden)
        return self._scan(inputs, h, gates, sequence=False).reshape(*lead, steps, hidden)

    def _run(
        self,
        x: Tensor,
        edge_index: Tensor | Graph | None,
        edge_weight: Tensor | None,
        h: Tensor | None,
        every: bool,
        present: Tensor | None = None,
    ) -> Tensor:
        """The last state over ``[..., N, F, T]``, or all of them ``[..., N, H, T]`` if `every`."""
        lead, hidden = x.shape[:-2], self.out_channels
        graph, h = self._checked(x, edge_index, edge_weight, h)
        gates = self._folded()
        if gates is None:
            y = self._call_parts(x, graph, h, every)
        else:
            y = self._scan(self._inputs(x, graph, present), h, gates, sequence=every, present=present)
        return y.reshape(*lead, x.size(-1), hidden).transpose(-1, -2) if every else y.reshape(*lead, hidden)

    def _checked(
        self, x: Tensor, edge_index: Tensor | Graph | None, edge_weight: Tensor | None, h: Tensor | None
    ) -> tuple[Graph, Tensor | None]:
        """The graph, and the state as ``[N, H]``."""
        graph = as_graph(edge_index, edge_weight, x.size(-3), self._backend)
        if h is None:
            return graph, None
        return graph, check_state(h, (*x.shape[:-2], self.out_channels), x, "H").reshape(-1, self.out_channels)

    def _folded(self) -> list[Tensor] | None:
        """The parameters of the gates on ``[A x, h]`` for the scan; ``None`` if one of the parts is called."""
        convs = [getattr(self, f"conv_{gate}") for gate in _GATES]
        if has_global_hook() or not all_run((conv, GCNConv.forward) for conv in convs):
            return None
        found = read([(self, _LINEARS), *((conv, _CONV) for conv in convs)])
        if found is None or len({conv.loop_weight for conv in convs}) > 1:
            return None
        hidden = self.out_channels
        linear, conv = torch.stack(found[0:6:2]), torch.stack(found[6::2])
        on_conv, on_state = linear[:, :, :hidden], linear[:, :, hidden:]
        product = torch.bmm(on_conv, torch.cat([conv, torch.stack(found[7::2]).unsqueeze(-1)], dim=-1))
        bias = torch.stack(found[1:6:2]) + product[:, :, -1]
        weight = torch.cat([product[:, :, :-1], on_state], dim=-1)
        return [one for pair in zip(weight.unbind(0), bias.unbind(0), strict=True) for one in pair]

    def _inputs(self, x: Tensor, graph: Graph, present: Tensor | None = None) -> Tensor:
        """``A x`` of ``[..., N, F, T]`` as ``[N, T, F]``."""
        same = torch.eye(self.in_channels, dtype=x.dtype, device=x.device)
        return functional.conv_stack(
            x.flatten(0, -3).transpose(-1, -2),
            graph,
            [same, x.new_zeros(self.in_channels)],
            conv_layers=1,
            gat=False,
            present=present,
            loop_weight=self.conv_z.loop_weight_on(graph),  # type: ignore[operator,union-attr]
            backend=self._backend,
        )

    def _scan(
        self, inputs: Tensor, h: Tensor | None, gates: list[Tensor], sequence: bool, present: Tensor | None = None
    ) -> Tensor:
        return functional.gated_scan(inputs, None, h, gates, sequence=sequence, present=present, backend=self._backend)

    def _call_parts(self, x: Tensor, graph: Graph, h: Tensor | None, every: bool) -> Tensor:
        """Calls the convolutions and linears of each step: the last state ``[N, H]``, or all ``[N, T, H]``."""
        steps = x.flatten(0, -3)
        edges = graph.edges(steps.size(0) // max(graph.num_nodes, 1))
        state = x.new_zeros(steps.size(0), self.out_channels) if h is None else h
        states = []
        for step in steps.unbind(-1):
            z, r = (torch.sigmoid(self._gate(gate, step, edges, state)) for gate in "zr")
            c = torch.tanh(self._gate("h", step, edges, state * r))
            state = z * state + (1 - z) * c
            states.append(state)
        if not every:
            return state
        return torch.stack(states, dim=1) if states else state.unsqueeze(1)[:, :0]

    def _gate(self, gate: str, x: Tensor, edges: tuple[Tensor, Tensor | None], h: Tensor) -> Tensor:
        conv, linear = getattr(self, f"conv_{gate}"), getattr(self, f"linear_{gate}")
        return linear(torch.cat([conv(x, *edges), h], dim=-1))  # type: ignore[no-any-return]


def check_periods(x: Tensor, channels: int) -> None:
    """Raises unless `x` is a sequence ``[N, F, T]`` or ``[B, N, F, T]``."""
    check_tensor("X", x)
    refuse_tracing(x.size(-1))
    if x.dim() not in (3, 4) or x.size(-2) != channels:
        expected = f"[N, {channels}, T] or [B, N, {channels}, T]"
        hint = f"; this looks like [..., T, {channels}]: pass X.transpose(-1, -2)" if x.size(-1) == channels else ""
        raise ValueError(f"X: expected {expected}, got {list(x.shape)}{hint}")


def _stacked(states: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(states, dim=-1) if states else like.new_zeros(*like.shape, 0)


class TGCN2(TGCN):
    r"""The cell :class:`TGCN` under the name and constructor of the one that takes batches.

    Args:
        in_channels (int): ``F``.
        out_channels (int): ``H``.
        batch_size (int): not used; a batch may have any size.
        improved, cached, add_self_loops, backend: as for :class:`TGCN`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        batch_size: int | None,
        improved: bool = False,
        cached: bool = False,
        add_self_loops: bool = True,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(in_channels, out_channels, improved, cached, add_self_loops, backend=backend)
        self.batch_size = batch_size
