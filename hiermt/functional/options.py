"""What the convolutions of a layer are: declared here once, for the functions, the modules and the operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from hiermt import reference
from hiermt._arguments import check_integer
from hiermt.graph import Graph

ACTIVATIONS = {"none": reference.NONE, "leaky_relu": reference.LEAKY_RELU, "sigmoid": reference.SIGMOID}
CONV_ACTIVATIONS = ("between", "after")


@dataclass(frozen=True)
class LayerOptions:
    """The convolutions of a layer.

    Attributes:
        conv_layers (int): number of convolutions.
        gat (bool): GATv2, or GCN.
        edge (bool): whether each GATv2 has an edge term.
        conv_activation (str): leaky_relu (slope 0.01) ``"between"`` the convolutions or ``"after"`` each.
    """

    conv_layers: int = 2
    gat: bool = True
    edge: bool = True
    conv_activation: str = "between"

    def __post_init__(self) -> None:
        if self.conv_activation not in CONV_ACTIVATIONS:
            raise ValueError(f"conv_activation: expected 'between' or 'after', got {self.conv_activation!r}")
        if type(self.conv_layers) is not int or self.conv_layers < 1:
            object.__setattr__(self, "conv_layers", check_integer("conv_layers", self.conv_layers, 1))

    @property
    def between(self) -> bool:
        """Whether no leaky_relu follows the last convolution."""
        return self.conv_activation == "between"

    @property
    def per_conv(self) -> int:
        """Number of parameters of a convolution."""
        return (7 if self.edge else 6) if self.gat else 2

    @property
    def rule(self) -> int:
        """Self-loop rule of the graph."""
        return reference.GATV2_RULE if self.gat else reference.GCN_RULE

    @property
    def weighted(self) -> bool:
        """Whether the operators read a weight of each entry."""
        return self.edge or not self.gat

    def check_params(self, params: Sequence[Tensor]) -> None:
        """Refuses a list that does not hold the parameters of so many convolutions."""
        if len(params) != self.conv_layers * self.per_conv:
            kind = f"GATv2 {'with' if self.edge else 'without'} an edge term" if self.gat else "GCN"
            raise ValueError(
                f"conv_params: expected {self.conv_layers} (conv_layers) times the {self.per_conv} parameters of a "
                f"{kind}, got {len(params)}"
            )

    def on(self, graph: Graph, params: Sequence[Tensor]) -> tuple[LayerOptions, Sequence[Tensor]]:
        """The options and parameters that are read on `graph`.

        Without edge weights the edge terms are not: as in PyG their parameters get no gradient, rather than zeros.
        """
        if not (self.gat and self.edge and graph.edge_weight is None):
            return self, params
        return replace(self, edge=False), [param for i, param in enumerate(params) if (i + 1) % 7]

    def check_weights_used(self, graph: Graph) -> None:
        """Refuses edge weights that a GATv2 without an edge term would silently ignore."""
        if self.gat and not self.edge and graph.edge_weight is not None:
            raise ValueError(
                "edge_weight was given, but this GATv2 has no edge term (edge_dim=None) and would ignore it; pass "
                "edge_weight=None, or build the model with edge_dim=1"
            )
