"""The two-headed model: signal or noise, then up or down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import functional
from hiermt._arguments import check_number
from hiermt.functional.heads import Heads
from hiermt.graph import Graph
from hiermt.nn.backbone import ASSUMED_NTF, TGCN
from hiermt.nn.headed import Headed
from hiermt.nn.parameters import LINEAR, Parts, all_run, has_global_hook, read, runs, unchanged
from hiermt.windows import Windows

_TASKS = {"signal": 2, "direction": 2}
_HEADS: Parts = (("signal_head", LINEAR), ("direction_head", LINEAR))


class TGCN_HierarchicalMT(Headed):
    r"""T-GCN with two heads that decide hierarchically: signal or noise, then up or down.

    Args:
        hidden_size (int): ``H``. (default: ``16``)
        in_channels, layers_nb, use_gat, and the keywords: as for :class:`hiermt.TGCN`.
    """

    # A class attribute, because models pickled by earlier versions lack it.
    heads = _TASKS

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
        dropout: float = 0.0,
        feature_names: Sequence[str] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            dict(_TASKS),
            in_channels,
            hidden_size,
            layers_nb,
            None,
            use_gat,
            conv_layers=conv_layers,
            edge_dim=edge_dim,
            conv_activation=conv_activation,
            layout=layout,
            dropout=dropout,
            feature_names=feature_names,
            backend=backend,
        )

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
        """Logits of both heads.

        Args:
            x, edge_index, edge_weight, h, return_sequence, return_state, present: as for :meth:`hiermt.TGCN.forward`.

        Shapes:
            - **returns:** signal logits and direction logits, each ``[N, 2]`` or, for a batch or windows, ``[B, N,
              2]``, with ``T`` before the 2 if `return_sequence`; third, the states if `return_state`

        Raises:
            ValueError, TypeError: as :meth:`hiermt.TGCN.forward`.
        """
        params = self._head_params()
        if params is None:
            logits, states = self._call_parts(
                x, edge_index, edge_weight, h, return_sequence, return_state, present=present
            )
            signal, direction = logits["signal"], logits["direction"]
            return (signal, direction, states) if return_state else (signal, direction)
        backbone: Any = self._modules.get("tgcn_backbone") or self.tgcn_backbone
        states = [] if return_state else None
        heads = Heads(params, backbone._backend)
        signal, direction = backbone.run_heads(heads, x, edge_index, edge_weight, h, return_sequence, states, present)
        return (signal, direction, states) if return_state else (signal, direction)

    @torch.no_grad()
    def decide(
        self,
        x: Tensor | Windows,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        threshold: float = 0.5,
        present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Down (0), Neutral (1) or Up (2) for every node.

        Args:
            x, edge_index, edge_weight: as for :meth:`forward`.
            threshold (float): a node has a signal iff ``P(signal) > threshold``. (default: ``0.5``)
            present (Tensor, optional): as for :meth:`forward`. An absent node is decided by the state that it holds.
                (default: ``None``)

        Shapes:
            - **returns:** predictions ``[N]`` int64, confidences ``[N]``, probabilities ``[N, 4]`` (noise, signal,
              down, up), each with a leading ``B`` if x has one
        """
        params = self._head_params() if runs(self, _FORWARD) else None
        if params is None:
            signal, direction = self(x, edge_index, edge_weight, **({} if present is None else {"present": present}))
            probabilities, predictions, confidences = functional.decision_from_logits(
                signal, direction, threshold, backend=self.backend
            )
            return predictions, confidences, probabilities
        backbone: Any = self._modules.get("tgcn_backbone") or self.tgcn_backbone
        heads = Heads(params, backbone._backend, check_number("threshold", threshold, 0.0, 1.0))
        *_, probabilities, predictions, confidences = backbone.run_heads(
            heads, x, edge_index, edge_weight, present=present
        )
        return predictions, confidences, probabilities

    def _head_params(self) -> list[Tensor] | None:
        """Parameters of the output linear and the heads; ``None`` if one of them was replaced."""
        backbone: Any = self._modules.get("tgcn_backbone") or self.tgcn_backbone
        out: Any = backbone._modules.get("out")
        if has_global_hook() or not all_run(((backbone, _BACKBONE_FORWARD), (out, _OUT_FORWARD))):
            return None
        if len(out._modules) != 1 or not unchanged(backbone, _LAST_STATE):
            return None
        params = read([(out, ((next(iter(out._modules)), LINEAR),)), (self, _HEADS)])
        if params is None or params[2].size(0) != 2 or params[4].size(0) != 2:
            return None
        return params


# The methods that a kernel replaces. A patched or overridden method is a different object.
_FORWARD, _BACKBONE_FORWARD, _OUT_FORWARD = TGCN_HierarchicalMT.forward, TGCN.forward, nn.Sequential.forward
_LAST_STATE = TGCN.last_state
