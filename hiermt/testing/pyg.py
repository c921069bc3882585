"""The published model: PyG convolutions, stepped through time.

Independent oracle of the tests and baseline of the benchmarks. Importing this module needs
``torch_geometric``; nothing else in the package imports it at import time.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv, GCNConv

from hiermt.nn import A3TGCN, TGCN, MultiTaskTGCN, TGCN_HierarchicalMT


class ConvStack(nn.Module):
    """PyG convolutions with leaky_relu(0.01) between them, or after each."""

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        use_gat: bool = True,
        conv_layers: int = 2,
        edge_dim: int | None = 1,
        conv_activation: str = "between",
    ) -> None:
        super().__init__()
        sizes = [(in_channels if i == 0 else hidden_size, hidden_size) for i in range(conv_layers)]
        self.convs = nn.ModuleList(
            GATv2Conv(f, h, heads=1, edge_dim=edge_dim, negative_slope=0.2) if use_gat else GCNConv(f, h)
            for f, h in sizes
        )
        self.conv_activation = conv_activation

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = conv(x, edge_index, edge_weight)
            if self.conv_activation == "after" or i < len(self.convs) - 1:
                x = F.leaky_relu(x, 0.01)
        return x


class Cell(nn.Module):
    """One T-GCN cell on top of :class:`ConvStack`; eqs. 2 to 6 of arXiv 1811.05320."""

    def __init__(self, in_channels: int, hidden_size: int, *args: Any, **conv: Any) -> None:
        super().__init__()
        self.gcn = ConvStack(in_channels, hidden_size, *args, **conv)
        self.lin_u = nn.Linear(in_channels + 2 * hidden_size, hidden_size)
        self.lin_r = nn.Linear(in_channels + 2 * hidden_size, hidden_size)
        self.lin_c = nn.Linear(in_channels + 2 * hidden_size, hidden_size)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, h: Tensor) -> Tensor:
        g = torch.sigmoid(self.gcn(x, edge_index, edge_weight))
        u = torch.sigmoid(self.lin_u(torch.cat([x, g, h], dim=-1)))
        r = torch.sigmoid(self.lin_r(torch.cat([x, g, h], dim=-1)))
        c = torch.tanh(self.lin_c(torch.cat([x, g, r * h], dim=-1)))
        return u * h + (1 - u) * c


class Backbone(nn.Module):
    """Cells stepped through time; x is ``[N, T, F]``, or ``[N, F, T]`` with ``layout="NFT"``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_size: int,
        layers_nb: int = 2,
        *args: Any,
        layout: str = "NTF",
        **conv: Any,
    ) -> None:
        super().__init__()
        self.hidden_size, self.layout = hidden_size, layout
        self.cells = nn.ModuleList(
            Cell(in_channels if i == 0 else hidden_size, hidden_size, *args, **conv) for i in range(layers_nb)
        )
        self.out = nn.Sequential(nn.Linear(hidden_size, out_channels), nn.Identity())

    def run(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, h: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """States of the last cell ``[N, T, H]``, and the last state of each cell."""
        x = x.mT if self.layout == "NFT" else x
        states = h or [x.new_zeros(x.size(0), self.hidden_size) for _ in self.cells]
        sequence = []
        for t in range(x.size(1)):
            layer_input = x[:, t]
            for i, cell in enumerate(self.cells):
                layer_input = cell(layer_input, edge_index, edge_weight, states[i])
                states = [*states[:i], layer_input, *states[i + 1 :]]
            sequence.append(layer_input)
        return torch.stack(sequence, dim=1), states

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        return self.out(self.run(x, edge_index, edge_weight)[1][-1])  # type: ignore[no-any-return]


class AttentionBackbone(Backbone):
    """The published A3T-GCN: attention over the states of the last cell."""

    def __init__(self, in_channels: int, out_channels: int, hidden_size: int, *args: Any, **conv: Any) -> None:
        super().__init__(in_channels, out_channels, hidden_size, *args, **conv)
        self.attention = nn.Sequential(nn.Linear(hidden_size, 1), nn.Softmax(dim=1))

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        sequence, _ = self.run(x, edge_index, edge_weight)
        return self.out(torch.sum(sequence * self.attention(sequence), dim=1))  # type: ignore[no-any-return]


class HierarchicalMT(nn.Module):
    """The two-headed model. State dicts load strictly into the model of ``hiermt`` and back."""

    def __init__(self, in_channels: int, hidden_size: int = 16, layers_nb: int = 2, **conv: Any) -> None:
        super().__init__()
        self.tgcn_backbone = Backbone(in_channels, hidden_size, hidden_size, layers_nb, **conv)
        self.signal_head = nn.Linear(hidden_size, 2)
        self.direction_head = nn.Linear(hidden_size, 2)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = self.tgcn_backbone(x, edge_index, edge_weight)
        return self.signal_head(features), self.direction_head(features)


class MultiTask(nn.Module):
    """A model of any number of heads; returns a dictionary of logits."""

    def __init__(
        self, in_channels: int, hidden_size: int = 16, layers_nb: int = 2, *, heads: dict[str, int], **conv: Any
    ) -> None:
        super().__init__()
        self.heads = heads
        self.tgcn_backbone = Backbone(in_channels, hidden_size, hidden_size, layers_nb, **conv)
        for name, classes in heads.items():
            self.add_module(f"{name}_head", nn.Linear(hidden_size, classes))

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> dict[str, Tensor]:
        features = self.tgcn_backbone(x, edge_index, edge_weight)
        return {name: self.get_submodule(f"{name}_head")(features) for name in self.heads}


_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    TGCN_HierarchicalMT: HierarchicalMT,
    TGCN: Backbone,
    A3TGCN: AttentionBackbone,
    MultiTaskTGCN: MultiTask,
}


def like(model: nn.Module) -> Any:
    """The model on PyG's convolutions, with the sizes, the layout and a copy of the weights of `model`.

    It is made of ordinary modules: for PyG's explainers, for ONNX, for tools that look into convolutions. It takes the
    edges as tensors, and has no dropout.

    Args:
        model (nn.Module): a model of hiermt, none of whose parts was replaced.

    Raises:
        TypeError: `model` is not one of the models of hiermt, or has a forward of another class.
        RuntimeError: its parameters are not those that its class makes.
    """
    # A class that on_hub makes has the forward of its kind, too.
    of_kind = (kind for kind in _TWINS if isinstance(model, kind) and type(model).forward is kind.forward)
    kind = next(of_kind, None)
    if kind is None:
        kinds = ", ".join(kind.__name__ for kind in _TWINS)
        raise TypeError(f"like: expected one of {kinds}, with its own forward, got {type(model).__name__}")
    own: Any = model
    config = {key: value for key, value in own.config.items() if key not in ("feature_names", "dropout")}
    twin = _TWINS[kind](**config)
    if isinstance(model, TGCN):
        twin.out = copy.deepcopy(model.out)
    parameter = next(model.parameters())
    twin = twin.to(parameter.device, parameter.dtype).train(model.training)
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin
