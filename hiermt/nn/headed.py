"""What models with a T-GCN backbone and heads have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hiermt.data.feature_names import FeatureNames
from hiermt.graph import Graph
from hiermt.nn.backbone import TGCN
from hiermt.nn.parameters import reset, runs
from hiermt.nn.pretrained import Pretrained
from hiermt.presence import WINDOWS_HOLD
from hiermt.windows import Windows

HEAD = "_head"


class Headed(FeatureNames, Pretrained, nn.Module):
    """Base of the models with heads: ``tgcn_backbone``, and a linear ``<name>_head`` for each name in ``heads``."""

    heads: dict[str, int]

    def __init__(self, heads: dict[str, int], in_channels: int, hidden_size: int, *args: Any, **options: Any) -> None:
        super().__init__()
        feature_names = options.pop("feature_names", None)
        self.tgcn_backbone = TGCN(in_channels, hidden_size, hidden_size, *args, **options)
        hidden_size = self.tgcn_backbone.hidden_size
        self.heads = heads
        for name, classes in heads.items():
            self.add_module(name + HEAD, nn.Linear(hidden_size, classes))
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

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does."""
        reset(self.tgcn_backbone, *(getattr(self, name + HEAD) for name in self.heads))

    def attention_weights(
        self,
        x: Tensor | Windows,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        *,
        present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention on each edge and day; see :meth:`hiermt.TGCN.attention_weights`."""
        return self.tgcn_backbone.attention_weights(x, edge_index, edge_weight, present=present)

    def _call_parts(
        self,
        x: Tensor | Windows,
        edge_index: Tensor | Graph | None,
        edge_weight: Tensor | None,
        *options: Any,
        present: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], list[Tensor] | None]:
        """Calls the backbone and the heads; the logits of each head, and the states if they are asked for."""
        backbone = self.tgcn_backbone
        if isinstance(x, Windows) and not runs(backbone, TGCN.forward):
            if present is not None:
                raise ValueError(WINDOWS_HOLD)
            present = x.gather_present()
            x = x.gather() if self.layout == "NTF" else x.gather().transpose(-1, -2)
        # A backbone of the user's own may take the three arguments alone.
        h, return_sequence, return_state = options or (None, False, False)
        asked = () if h is None and not return_sequence and not return_state else options
        mask = {} if present is None else {"present": present}
        features = backbone(x, edge_index, edge_weight, *asked, **mask)
        states = None
        if return_state:
            features, states = features
        flat = features if features.dim() == 2 else features.flatten(0, -2)
        logits = {name: getattr(self, name + HEAD)(flat) for name in self.heads}
        if features.dim() > 2:
            logits = {name: value.unflatten(0, features.shape[:-1]) for name, value in logits.items()}
        return logits, states
