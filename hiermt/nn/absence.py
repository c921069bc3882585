"""A day of a model on the nodes that are there, for cells that are called step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hiermt._tracing import recorded
from hiermt.presence import WINDOWS_HOLD, check_present
from hiermt.windows import Windows


def mask_of(x: Tensor | Windows, present: Tensor | None, y: Tensor | Windows, lead: tuple[int, ...]) -> Tensor | None:
    """The mask of the input of a model as ``[N, T]``, one of each copy or window; ``None`` without one.

    Args:
        x, present: arguments of the model.
        y (Tensor or Windows): `x` as ``[N, T, F]``, or windows of a series.
        lead (tuple of int): dimensions of `x` before ``T`` and ``F``.

    Raises:
        TypeError, ValueError: as :func:`hiermt.presence.check_present`; or `x` are windows, and `present` was given.
    """
    if isinstance(x, Windows):
        if present is not None:
            raise ValueError(WINDOWS_HOLD)
        present = x.gather_present()
        return None if present is None else present.flatten(0, 1)
    if present is None:
        return None
    assert isinstance(y, Tensor)
    steps = y.size(1)
    if len(lead) > 1 and isinstance(present, Tensor) and present.dim() == 2:
        return check_present(present, (lead[1], steps), y).expand(*lead, steps).flatten(0, 1)
    return check_present(present, (*lead, steps), y).reshape(y.size(0), steps)


class Day:
    """The subgraph of the nodes that are there on one day.

    Args:
        edges (Tensor, Tensor or None): edges and weights of all nodes.
        there (Tensor): which nodes are there, ``[N]`` bool.

    Raises:
        NotImplementedError: the call is traced, and the size of the subgraph is a value of `there`.
    """

    def __init__(self, edges: tuple[Tensor, Tensor | None], there: Tensor) -> None:
        if recorded():
            raise NotImplementedError(
                "present: a model with a replaced, wrapped or hooked part runs each day on the nodes that are there, "
                "whose number torch.compile and torch.export cannot record; run it without them"
            )
        edge_index, weight = edges
        self.nodes = there.nonzero().squeeze(1)
        source, target = edge_index.long().unbind(0)
        kept = (there[source] & there[target]).nonzero().squeeze(1)
        number = there.cumsum(0).sub_(1)
        self.edge_index = number[edge_index[:, kept].long()]
        self.edge_weight = None if weight is None else weight[kept]

    def run(self, cell: Any, x: Tensor, h: Tensor) -> Tensor:
        """The states of all nodes after the day: of those that are there by the cell, of the others `h`."""
        if not self.nodes.numel():
            return h
        after = cell(x[self.nodes], self.edge_index, self.edge_weight, h[self.nodes])
        return torch.index_copy(h.to(after.dtype), 0, self.nodes, after)
