"""One T-GCN cell: a convolution stack and three gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hiermt import functional
from hiermt._arguments import check_integer, check_tensor
from hiermt._tracing import NotScriptable
from hiermt.functional.arguments import GATE_PARAMS
from hiermt.functional.heads import Heads
from hiermt.functional.layer import run_layer, run_layer_heads
from hiermt.graph import Graph
from hiermt.nn.conv import GAT, GCN
from hiermt.nn.parameters import LINEAR, Parts, all_run, has_global_hook, read, reset
from hiermt.nn.states import check_state
from hiermt.windows import Windows

_GATES: Parts = (("lin_u", LINEAR), ("lin_r", LINEAR), ("lin_c", LINEAR))


class TGCNCell(NotScriptable, nn.Module):
    r"""One T-GCN cell (arXiv 1811.05320): a convolution stack and three gates.

    Args:
        in_channels (int): ``F``.
        hidden_size (int): ``H``.
        use_gat, conv_layers, edge_dim, conv_activation, backend: as for :class:`hiermt.TGCN`.
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
        options: dict[str, Any] = {"conv_activation": conv_activation, "backend": backend}
        if use_gat:
            self.gcn = GAT(in_channels, hidden_size, conv_layers, edge_dim=edge_dim, **options)
        else:
            self.gcn = GCN(in_channels, hidden_size, conv_layers, **options)
        self.lin_u = nn.Linear(in_channels + 2 * hidden_size, hidden_size)
        self.lin_r = nn.Linear(in_channels + 2 * hidden_size, hidden_size)
        self.lin_c = nn.Linear(in_channels + 2 * hidden_size, hidden_size)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does."""
        reset(self.gcn, self.lin_u, self.lin_r, self.lin_c)

    def gates(self) -> list[Tensor] | None:
        """The gate parameters in the order of the operators; ``None`` if a gate was replaced."""
        return read([(self, _GATES)])

    def op_parameters(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """The parameters of convolutions and gates for :func:`hiermt.functional.tgcn_layer`.

        ``None`` if the cell or one of its parts does not compute what that function computes: a subclass, an adapter,
        a patched ``forward``, a hook.
        """
        stack: Any = self._modules.get("gcn") or self.gcn
        if not all_run(((self, _FORWARD), (stack, _STACK_FORWARD))):
            return None
        parts = stack.parts()
        tensors = None if parts is None else read([*parts, (self, _GATES)])
        return None if tensors is None else (tensors[:-GATE_PARAMS], tensors[-GATE_PARAMS:])

    def forward(
        self,
        x_t: Tensor,
        edge_index: Tensor | Graph | None = None,
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
        check_tensor("x_t", x_t)
        if x_t.dim() != 2 or x_t.size(1) != self.in_channels:
            raise ValueError(f"x_t: expected [N, {self.in_channels}], got {list(x_t.shape)}")
        if h is not None:
            check_state(h, (x_t.size(0), self.hidden_size), x_t, "h")
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
        self,
        x: Tensor | Windows,
        graph: Graph,
        params: tuple[list[Tensor], list[Tensor]],
        sequence: bool,
        h0: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """All time steps: ``[N, T, F] -> [N, T, H]``, or ``[N, H]`` if not `sequence`; `h0` is zeros by default.

        With windows, a node is ``window * S + stock``, and each day of the series is convolved once. `params` is the
        result of :meth:`op_parameters`.
        """
        stack: Any = self._modules.get("gcn") or self.gcn
        options = {"sequence": sequence, "present": present, "backend": stack._backend}
        return run_layer(x, graph, *params, stack.options, h0, **options)

    def run_heads(
        self,
        x: Tensor | Windows,
        graph: Graph,
        params: tuple[list[Tensor], list[Tensor]],
        heads: Heads,
        h0: Tensor | None = None,
        present: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """What `heads` give of the last state of :meth:`run_sequence`, of rows ``[N, ...]``."""
        stack: Any = self._modules.get("gcn") or self.gcn
        return run_layer_heads(x, graph, *params, stack.options, heads, h0, present=present, backend=stack._backend)


# The methods that a kernel replaces. A patched or overridden method is a different object.
_FORWARD, _STACK_FORWARD = TGCNCell.forward, GAT.forward


def cell_parameters(cells: list[TGCNCell]) -> list[tuple[list[Tensor], list[Tensor]]] | None:
    """The parameters of all cells; ``None`` if one of them must be called."""
    if has_global_hook():
        return None
    params = []
    for cell in cells:
        found = cell.op_parameters() if isinstance(cell, TGCNCell) else None
        if found is None:
            return None
        params.append(found)
    return params
