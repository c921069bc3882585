"""A3T-GCN: a T-GCN whose output reads its states through attention over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hiermt.graph import Graph
from hiermt.nn.backbone import TGCN
from hiermt.nn.parameters import reset
from hiermt.windows import Windows


class A3TGCN(TGCN):
    r"""A3T-GCN: T-GCN cells, attention over the states of the last one, a linear on their sum (arXiv 2006.11583).

    .. math:: a_t = \mathrm{softmax}_t(w^\top h_t + b), \quad y = W_{out} \sum_t a_t h_t + b_{out}

    Its arguments and parameters are those of :class:`hiermt.TGCN`, and ``attention.0.{weight, bias}``.
    """

    def _add_pooling(self) -> None:
        score = nn.Linear(self.hidden_size, 1)
        nn.init.uniform_(score.weight)
        self.attention = nn.Sequential(score, nn.Softmax(dim=1))

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does; an output activation is left as it is."""
        reset(*self._cells(), self.attention[0])
        nn.init.uniform_(self.attention[0].weight)  # type: ignore[arg-type]
        reset(self.out[0])

    def forward(  # type: ignore[override]
        self,
        x: Tensor | Windows,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        h: Sequence[Tensor] | Tensor | None = None,
        return_state: bool = False,
        present: Tensor | None = None,
    ) -> Any:
        """Runs the model.

        Args:
            x, edge_index, edge_weight, h, return_state, present: as for :meth:`hiermt.TGCN.forward`. The attention is
                over the steps of x alone: a stream in pieces has one attention a piece. It is over all of them, also
                those on which a node is absent and holds its state.

        Shapes:
            - **returns:** ``[N, out_channels]`` or, for a batch or windows, ``[B, N, out_channels]``; a pair of this
              and the list of states if `return_state`

        Raises:
            ValueError, TypeError: as :meth:`hiermt.TGCN.forward`.
        """
        states: list[Tensor] | None = [] if return_state else None
        sequence = self.last_state(x, edge_index, edge_weight, h, True, states, present)
        flat = sequence.flatten(0, -3)
        # Not a product and a sum, whose gradients write and read the states several times.
        context = self.attention(flat).transpose(1, 2).bmm(flat).squeeze(1)
        y = self.out(context).unflatten(0, sequence.shape[:-2])
        return (y, states) if return_state else y

    def step_weights(
        self,
        x: Tensor | Windows,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        h: Sequence[Tensor] | Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Attention of each node on each step.

        Args:
            x, edge_index, edge_weight, h, present: as for :meth:`forward`.

        Shapes:
            - **returns:** ``[N, T]`` or ``[B, N, T]``
        """
        sequence = self.last_state(x, edge_index, edge_weight, h, True, None, present)
        flat = sequence.flatten(0, -3)
        return self.attention(flat).squeeze(-1).unflatten(0, sequence.shape[:-2])  # type: ignore[no-any-return]
