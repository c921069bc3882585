"""What the convolutions of a layer are: declared and checked here, for the functions and the modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from hiermt import reference
from hiermt._arguments import check_integer
from hiermt.functional.arguments import Expected, Size
from hiermt.graph import Graph

ACTIVATIONS = {"none": reference.NONE, "leaky_relu": reference.LEAKY_RELU, "sigmoid": reference.SIGMOID}
CONV_ACTIVATIONS = ("between", "after")
_GCN = ("lin.weight", "bias")
_GATV2 = ("lin_l.weight", "lin_l.bias", "lin_r.weight", "lin_r.bias", "att", "bias", "lin_edge.weight")


@dataclass(frozen=True)
class LayerOptions:
    """The convolutions of a layer.

    Attributes:
        conv_layers (int): number of convolutions.
        gat (bool): GATv2, or GCN.
        edge (bool): whether each GATv2 has an edge term; ``False`` for GCN.
        conv_activation (str): leaky_relu (slope 0.01) ``"between"`` the convolutions or ``"after"`` each.
        between (bool): whether no leaky_relu follows the last convolution.
        per_conv (int): number of parameters of a convolution.
        rule (int): self-loop rule of the graph.
        weighted (bool): whether the operators read a weight of each entry.

    Raises:
        ValueError: `conv_layers` is not an integer >= 1, or `conv_activation` is unknown.
    """

    conv_layers: int = 2
    gat: bool = True
    edge: bool = True
    conv_activation: str = "between"
    # Not properties, each of which would be a call in Python at every forward.
    between: bool = field(init=False, repr=False, compare=False)
    per_conv: int = field(init=False, repr=False, compare=False)
    rule: int = field(init=False, repr=False, compare=False)
    weighted: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.conv_activation not in CONV_ACTIVATIONS:
            raise ValueError(f"conv_activation: expected 'between' or 'after', got {self.conv_activation!r}")
        gat, edge = bool(self.gat), bool(self.gat and self.edge)
        values = {
            "conv_layers": check_integer("conv_layers", self.conv_layers, 1),
            "gat": gat,
            "edge": edge,
            "between": self.conv_activation == "between",
            "per_conv": 6 + edge if gat else 2,
            "rule": reference.GATV2_RULE if gat else reference.GCN_RULE,
            "weighted": edge or not gat,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of_modules(
        cls, use_gat: bool, conv_layers: int, edge_dim: int | None, conv_activation: str = "between"
    ) -> LayerOptions:
        """The options that the arguments of the modules stand for.

        Raises:
            ValueError: `edge_dim` of a GATv2 is neither 1 nor ``None``, or as for the class.
        """
        if use_gat and edge_dim is not None and check_integer("edge_dim", edge_dim, 0) != 1:
            raise ValueError(f"edge_dim: expected 1 (a scalar weight per edge) or None, got {edge_dim}")
        return cls(conv_layers, use_gat, edge_dim is not None, conv_activation)

    @property
    def module_arguments(self) -> dict[str, Any]:
        """The arguments of the modules that stand for these options."""
        return {
            "use_gat": self.gat,
            "conv_layers": self.conv_layers,
            "edge_dim": 1 if self.edge else None,
            "conv_activation": self.conv_activation,
        }

    def on(self, graph: Graph, params: Sequence[Tensor]) -> tuple[LayerOptions, Sequence[Tensor]]:
        """The options and parameters that are read on `graph`.

        Without edge weights the edge terms are not: as in PyG their parameters get no gradient, rather than zeros.

        Raises:
            TypeError: `graph` is not a :class:`hiermt.Graph`.
            ValueError: there are not `per_conv` parameters for each convolution, or edge weights would be ignored.
        """
        if not isinstance(graph, Graph):
            raise TypeError(f"graph: expected a hiermt.Graph, got {type(graph).__name__}")
        if not hasattr(params, "__len__"):
            raise TypeError(f"conv_params: expected a sequence of Tensors, got {type(params).__name__}")
        if len(params) != self.conv_layers * self.per_conv:
            kind = f"GATv2 {'with' if self.edge else 'without'} an edge term" if self.gat else "GCN"
            raise ValueError(
                f"conv_params: expected {self.conv_layers} (conv_layers) times the {self.per_conv} parameters of a "
                f"{kind}, got {len(params)}"
            )
        if not self.weighted:
            self.check_weights_used(graph)
        elif self.edge and graph.edge_weight is None:
            return replace(self, edge=False), [param for i, param in enumerate(params) if (i + 1) % 7]
        return self, params

    def expected(self, channels: Size, hidden: Size, names: Sequence[str] = ()) -> list[Expected]:
        """The parameters of all convolutions; `names` are those of one convolution in errors."""
        found = []
        for k in range(self.conv_layers):
            for i, kind in enumerate((_GATV2 if self.gat else _GCN)[: self.per_conv]):
                name = names[i] if names else f"conv_params: {kind} of convolution {k}"
                if kind in ("att", "lin_edge.weight"):
                    found.append(Expected(name, (hidden,), flat=True))
                elif kind.endswith(".weight"):
                    found.append(Expected(name, (hidden, hidden if k else channels)))
                else:
                    found.append(Expected(name, (hidden,)))
        return found

    def check_weights_used(self, graph: Graph) -> None:
        """Raises ``ValueError`` for edge weights that a GATv2 without an edge term would silently ignore."""
        if not self.weighted and graph.edge_weight is not None:
            raise ValueError(
                "edge_weight was given, but this GATv2 has no edge term (edge_dim=None) and would ignore it; pass "
                "edge_weight=None, or build the model with edge_dim=1"
            )
