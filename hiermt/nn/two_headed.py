"""The two-headed model: signal or noise, then up or down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import functional
from hiermt.data.feature_names import FeatureNames
from hiermt.graph import Graph
from hiermt.nn.backbone import ASSUMED_NTF, TGCN
from hiermt.nn.parameters import LINEAR, Parts, all_run, has_global_hook, read, runs
from hiermt.nn.pretrained import Pretrained
from hiermt.windows import Windows

_HEADS: Parts = (("signal_head", LINEAR), ("direction_head", LINEAR))


class TGCN_HierarchicalMT(FeatureNames, Pretrained, nn.Module):
    r"""T-GCN with two heads that decide hierarchically: signal or noise, then up or down.

    Args:
        hidden_size (int): ``H``. (default: ``16``)
        in_channels, layers_nb, use_gat, conv_layers, edge_dim, conv_activation, layout, feature_names, backend: as for
            :class:`hiermt.TGCN`.
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
        layout: str = ASSUMED_NTF,
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
        """Implementation; assign ``"auto"``, ``"native"`` or ``"reference"`` to change it."""
        return getattr(self.tgcn_backbone, "backend", "auto")

    @backend.setter
    def backend(self, backend: str) -> None:
        self.tgcn_backbone.backend = backend

    @property
    def layout(self) -> str:
        """Order of x, ``"NTF"`` or ``"NFT"``; the value given to the constructor if the backbone has no layout."""
        return getattr(self.tgcn_backbone, "layout", self.config["layout"])  # type: ignore[no-any-return]

    def forward(
        self, x: Tensor | Windows, edge_index: Tensor | Graph, edge_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of both heads.

        Args:
            x, edge_index, edge_weight: as for :meth:`hiermt.TGCN.forward`.

        Shapes:
            - **returns:** signal logits and direction logits, each ``[N, 2]`` or, for a batch or windows,
              ``[B, N, 2]``

        Raises:
            ValueError: x contradicts the layout or the graph.
        """
        params = self._head_params()
        if params is None:
            return self._call_parts(x, edge_index, edge_weight)
        backbone: Any = self._modules.get("tgcn_backbone") or self.tgcn_backbone
        h = backbone.last_state(x, edge_index, edge_weight)
        flat = h if h.dim() == 2 else h.flatten(0, -2)
        signal, direction = functional.heads(flat, params, backend=backbone._backend)
        if h.dim() == 2:
            return signal, direction
        return signal.reshape(*h.shape[:-1], 2), direction.reshape(*h.shape[:-1], 2)

    def _call_parts(
        self, x: Tensor | Windows, edge_index: Tensor | Graph, edge_weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Calls the backbone and the heads."""
        backbone = self.tgcn_backbone
        if isinstance(x, Windows) and not runs(backbone, _BACKBONE_FORWARD):
            x = x.gather() if self.layout == "NTF" else x.gather().transpose(-1, -2)
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
        params = self._head_params() if runs(self, _FORWARD) else None
        if params is None:
            signal, direction = self(x, edge_index, edge_weight)
            probabilities, predictions, confidences = functional.decision_from_logits(
                signal, direction, threshold, backend=self.backend
            )
            return predictions, confidences, probabilities
        backbone: Any = self._modules.get("tgcn_backbone") or self.tgcn_backbone
        h = backbone.last_state(x, edge_index, edge_weight)
        *_, probabilities, predictions, confidences = functional.decision(
            h.flatten(0, -2), params, threshold, backend=backbone._backend
        )
        lead = h.shape[:-1]
        return predictions.reshape(lead), confidences.reshape(lead), probabilities.reshape(*lead, 4)

    def _head_params(self) -> list[Tensor] | None:
        """Parameters of the output linear and the heads; ``None`` if one of them was replaced."""
        backbone: Any = self._modules.get("tgcn_backbone") or self.tgcn_backbone
        out: Any = backbone._modules.get("out")
        if has_global_hook() or not all_run(((backbone, _BACKBONE_FORWARD), (out, _OUT_FORWARD))):
            return None
        if len(out._modules) != 1:
            return None
        params = read([(out, ((next(iter(out._modules)), LINEAR),)), (self, _HEADS)])
        if params is None or params[2].size(0) != 2 or params[4].size(0) != 2:
            return None
        return params


# The methods that a kernel replaces. A patched or overridden method is a different object.
_FORWARD, _BACKBONE_FORWARD, _OUT_FORWARD = TGCN_HierarchicalMT.forward, TGCN.forward, nn.Sequential.forward
