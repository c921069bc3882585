"""The cells of PyTorch Geometric Temporal, their equations on PyG's ``GCNConv``, one step after the other.

Independent oracle of the tests and baseline of the benchmarks. Importing this module needs ``torch_geometric``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv


class TGCN(nn.Module):
    """A cell: X ``[N, F]`` or ``[B, N, F]``, H with ``H`` in place of ``F``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        improved: bool = False,
        cached: bool = False,
        add_self_loops: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        for gate in "zrh":
            conv = GCNConv(in_channels, out_channels, improved, cached, add_self_loops)
            self.add_module(f"conv_{gate}", conv)
            self.add_module(f"linear_{gate}", nn.Linear(2 * out_channels, out_channels))

    def gate(self, name: str, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, h: Tensor) -> Tensor:
        conv, linear = getattr(self, f"conv_{name}"), getattr(self, f"linear_{name}")
        return linear(torch.cat([conv(x, edge_index, edge_weight), h], dim=-1))  # type: ignore[no-any-return]

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None, h: Tensor | None = None
    ) -> Tensor:
        h = x.new_zeros(*x.shape[:-1], self.out_channels) if h is None else h
        z = torch.sigmoid(self.gate("z", x, edge_index, edge_weight, h))
        r = torch.sigmoid(self.gate("r", x, edge_index, edge_weight, h))
        c = torch.tanh(self.gate("h", x, edge_index, edge_weight, h * r))
        return z * h + (1 - z) * c


class A3TGCN(nn.Module):
    """Attention over periods ``[..., N, F, T]``, each from the same state."""

    def __init__(self, in_channels: int, out_channels: int, periods: int, *options: bool) -> None:
        super().__init__()
        self._base_tgcn = TGCN(in_channels, out_channels, *options)
        self._attention = nn.Parameter(torch.rand(periods))

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None, h: Tensor | None = None
    ) -> Tensor:
        attention = torch.softmax(self._attention, dim=0)
        total = x.new_zeros(())
        for t in range(attention.numel()):
            total = total + attention[t] * self._base_tgcn(x[..., t], edge_index, edge_weight, h)
        return total
