"""A T-GCN with any number of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hiermt import functional
from hiermt._arguments import check_integer
from hiermt.graph import Graph
from hiermt.nn.backbone import ASSUMED_NTF
from hiermt.nn.headed import HEAD, Headed
from hiermt.windows import Windows


class MultiTaskTGCN(Headed):
    r"""T-GCN with one linear head a task.

    The head of the task ``signal`` has the parameters ``signal_head.{weight, bias}``. With the heads ``{"signal": 2,
    "direction": 2}`` it has the parameters of :class:`hiermt.TGCN_HierarchicalMT`, and checkpoints of one load into the
    other.

    Args:
        heads (mapping of str to int): number of classes of each task, 1 for a regression.
        hidden_size (int): ``H``. (default: ``16``)
        in_channels, layers_nb, use_gat, and the keywords: as for :class:`hiermt.TGCN`.

    Example:
        >>> model = hiermt.MultiTaskTGCN(13, heads={"signal": 2, "direction": 2, "regime": 3, "return": 1})
        >>> model(x, edge_index, edge_weight)["regime"].shape
        torch.Size([100, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int = 16,
        layers_nb: int = 2,
        use_gat: bool = True,
        *,
        heads: Mapping[str, int],
        conv_layers: int = 2,
        edge_dim: int | None = 1,
        conv_activation: str = "between",
        layout: str = ASSUMED_NTF,
        dropout: float = 0.0,
        feature_names: Sequence[str] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            _checked(heads),
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
        self.config["heads"] = dict(self.heads)

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
        """Logits of each head.

        Args:
            x, edge_index, edge_weight, h, return_sequence, return_state, present: as for :meth:`hiermt.TGCN.forward`.

        Shapes:
            - **returns:** a dictionary from the name of a task to ``[N, classes]``, with leading ``B`` and with ``T``
              before the classes as for :meth:`hiermt.TGCN.forward`; a pair of this and the states if `return_state`

        Raises:
            ValueError, TypeError: as :meth:`hiermt.TGCN.forward`.
        """
        logits, states = self._call_parts(x, edge_index, edge_weight, h, return_sequence, return_state, present=present)
        return (logits, states) if return_state else logits

    @torch.no_grad()
    def decide(
        self,
        x: Tensor | Windows,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        threshold: float = 0.5,
        present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The decision of the heads ``signal`` and ``direction``, as :meth:`hiermt.TGCN_HierarchicalMT.decide`.

        Raises:
            ValueError: the model has no heads of these names with two classes each.
        """
        if self.heads.get("signal") != 2 or self.heads.get("direction") != 2:
            raise ValueError(f"decide: expected the heads 'signal' and 'direction' of 2 classes, got {self.heads}")
        logits = self(x, edge_index, edge_weight, **({} if present is None else {"present": present}))
        probabilities, predictions, confidences = functional.decision_from_logits(
            logits["signal"], logits["direction"], threshold, backend=self.backend
        )
        return predictions, confidences, probabilities


def _checked(heads: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(heads, Mapping):
        raise TypeError(f"heads: expected a mapping from names to numbers of classes, got {type(heads).__name__}")
    if not heads:
        raise ValueError("heads: expected one or more, got none")
    for name in heads:
        if not isinstance(name, str):
            raise TypeError(f"heads: expected a string as name, got {name!r}")
        if not name.isidentifier() or hasattr(Headed, name + HEAD):
            raise ValueError(f"heads: expected a name of letters, digits and underscores, got {name!r}")
    return {str(name): check_integer(f"heads[{name!r}]", classes, 1) for name, classes in heads.items()}
