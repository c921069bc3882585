"""T-GCN modules as they are published: x is ``[N, F, T]``, the output linear is followed by ``Identity``.

Written from the published form, apart from ``hiermt.testing.pyg``, so that neither is the measure of itself.
`changes` are mutations: each makes the cell compute another thing under the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv, GCNConv


class GAT(nn.Module):
    def __init__(self, in_channels: int, sizes: list[int], edge_dim: int | None = 1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            GATv2Conv(a, b, heads=1, edge_dim=edge_dim) for a, b in zip([in_channels, *sizes], sizes, strict=False)
        )
        self.edge_dim = edge_dim

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        for conv in self.convs[:-1]:
            x = F.leaky_relu(conv(x, edge_index, edge_weight))
        return self.convs[-1](x, edge_index, edge_weight)  # type: ignore[no-any-return]


class SingleGAT(nn.Module):
    """One convolution that looks at no edge weight, with its activation."""

    def __init__(self, in_channels: int, sizes: list[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList([GATv2Conv(in_channels, sizes[0], heads=1)])

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        for conv in self.convs:
            x = F.leaky_relu(conv(x, edge_index))
        return x


class GCN(nn.Module):
    def __init__(self, in_channels: int, sizes: list[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(GCNConv(a, b) for a, b in zip([in_channels, *sizes], sizes, strict=False))

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        for conv in self.convs[:-1]:
            x = F.leaky_relu(conv(x, edge_index, edge_weight))
        return self.convs[-1](x, edge_index, edge_weight)  # type: ignore[no-any-return]


STACKS: dict[str, Callable[..., nn.Module]] = {
    "gat": lambda f, h: GAT(f, [h, h]),
    "gat-unweighted": lambda f, h: GAT(f, [h, h], None),
    "single": lambda f, h: SingleGAT(f, [h]),
    "gcn": lambda f, h: GCN(f, [h, h]),
}


class TGCNCell(nn.Module):
    def __init__(self, in_channels: int, hidden_size: int, stack: str = "gat") -> None:
        super().__init__()
        self.gcn = STACKS[stack](in_channels, hidden_size)
        self.lin_u = nn.Linear(2 * hidden_size + in_channels, hidden_size)
        self.lin_r = nn.Linear(2 * hidden_size + in_channels, hidden_size)
        self.lin_c = nn.Linear(2 * hidden_size + in_channels, hidden_size)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, h: Tensor) -> Tensor:
        gcn_out = F.sigmoid(self.gcn(x, edge_index, edge_weight))
        u = F.sigmoid(self.lin_u(torch.cat([x, gcn_out, h], dim=-1)))
        r = F.sigmoid(self.lin_r(torch.cat([x, gcn_out, h], dim=-1)))
        c = F.tanh(self.lin_c(torch.cat([x, gcn_out, r * h], dim=-1)))
        return u * h + (1 - u) * c


class TGCN(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_size: int,
        layers_nb: int = 2,
        output_activation: nn.Module | None = None,
        stack: str = "gat",
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.cells = nn.ModuleList(
            [TGCNCell(in_channels, hidden_size, stack)]
            + [TGCNCell(hidden_size, hidden_size, stack) for _ in range(layers_nb - 1)]
        )
        self.out = nn.Sequential(
            nn.Linear(hidden_size, out_channels),
            output_activation if output_activation is not None else nn.Identity(),
        )

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        # On the CPU and in float32, whatever x is: so it is published.
        h_prev = [torch.zeros(x.shape[0], self.hidden_size) for _ in range(len(self.cells))]
        for t in range(x.shape[-1]):
            h = x[:, :, t]
            for i, cell in enumerate(self.cells):
                h = cell(h, edge_index, edge_weight, h_prev[i])
                h_prev[i] = h
        return self.out(h_prev[-1])  # type: ignore[no-any-return]


class A3TGCN(TGCN):
    """Attention over the states of the last cell, in place of the last one."""

    def __init__(self, in_channels: int, out_channels: int, hidden_size: int, *args: Any, **options: Any) -> None:
        super().__init__(in_channels, out_channels, hidden_size, *args, **options)
        self.attention = nn.Sequential(nn.Linear(hidden_size, 1), nn.Softmax(dim=1))

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        h_prev = [torch.zeros(x.shape[0], self.hidden_size) for _ in range(len(self.cells))]
        states = torch.zeros(x.shape[0], x.shape[-1], self.hidden_size)
        for t in range(x.shape[-1]):
            h = x[:, :, t]
            for i, cell in enumerate(self.cells):
                h = h_prev[i] = cell(h, edge_index, edge_weight, h_prev[i])
            states[:, t, :] = h
        return self.out(torch.sum(states * self.attention(states), dim=1))  # type: ignore[no-any-return]


class TGCN_HierarchicalMT(nn.Module):
    def __init__(self, in_channels: int, hidden_size: int, layers_nb: int = 2, stack: str = "gat") -> None:
        super().__init__()
        self.tgcn_backbone = TGCN(in_channels, hidden_size, hidden_size, layers_nb, stack=stack)
        self.signal_head = nn.Linear(hidden_size, 2)
        self.direction_head = nn.Linear(hidden_size, 2)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = self.tgcn_backbone(x, edge_index, edge_weight)
        return self.signal_head(features), self.direction_head(features)


def weight_of(stack: str, edge_weight: Tensor) -> Tensor | None:
    """What such a model takes for edge weights."""
    return None if stack in ("single", "gat-unweighted") else edge_weight


def keys(module: nn.Module) -> list[Any]:
    """Names, to show that a mutation has the same."""
    return list(module.state_dict())
