"""Attention over periods around the T-GCN cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hiermt._arguments import check_integer
from hiermt._tracing import NotScriptable
from hiermt.graph import Graph
from hiermt.nn.parameters import reset
from hiermt.nn.temporal.cell import TGCN, check_periods


class A3TGCN(NotScriptable, nn.Module):
    r"""A3T-GCN (arXiv 2006.11583) as PyTorch Geometric Temporal computes it.

    .. math:: H' = \sum_t \mathrm{softmax}(a)_t \, \mathrm{TGCN}(X_t, H)

    Each period starts from the same state `H`: unlike in the paper, and in :class:`hiermt.A3TGCN`, the state is not
    handed on from one period to the next. Constructor, call and parameters are those of
    ``torch_geometric_temporal.nn.recurrent.A3TGCN``.

    Args:
        in_channels (int): ``F``.
        out_channels (int): ``H``.
        periods (int): ``T``.
        improved, cached, add_self_loops, backend: as for :class:`TGCN`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        periods: int,
        improved: bool = False,
        cached: bool = False,
        add_self_loops: bool = True,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.in_channels = check_integer("in_channels", in_channels, 1)
        self.out_channels = check_integer("out_channels", out_channels, 1)
        self.periods = check_integer("periods", periods, 1)
        self.improved, self.cached, self.add_self_loops = improved, cached, add_self_loops
        self._base_tgcn = TGCN(in_channels, out_channels, improved, cached, add_self_loops, backend=backend)
        self._attention = nn.Parameter(torch.empty(self.periods))
        nn.init.uniform_(self._attention)

    @property
    def backend(self) -> str:
        """``"auto"``, ``"native"`` or ``"reference"``; assign to change it."""
        return self._base_tgcn.backend

    @backend.setter
    def backend(self, backend: str) -> None:
        self._base_tgcn.backend = backend

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does."""
        reset(self._base_tgcn)
        nn.init.uniform_(self._attention)

    def forward(
        self,
        X: Tensor,
        edge_index: Tensor | Graph | None = None,
        edge_weight: Tensor | None = None,
        H: Tensor | None = None,
    ) -> Tensor:
        """Runs all periods.

        Args:
            X (Tensor): features of each period.
            edge_index (Tensor or Graph): edges.
            edge_weight (Tensor, optional): edge weights. (default: ``None``, 1 each)
            H (Tensor, optional): state before each period. (default: ``None``, zeros)

        Shapes:
            - **X:** ``[N, F, T]``, or ``[B, N, F, T]`` with one shared graph; **H:** ``[N, H]`` or ``[B, N, H]``
            - **returns:** the states summed with their attention, shaped as `H`

        Raises:
            ValueError: a shape or device is another than expected, or X has not `periods` periods.
            TypeError: an argument is not a tensor, or a dtype is another.
        """
        check_periods(X, self.in_channels)
        if X.size(-1) != self.periods:
            raise ValueError(f"X: expected {self.periods} periods in the last dimension, got {list(X.shape)}")
        states = self._base_tgcn.each_period(X, edge_index, edge_weight, H)
        attention = torch.softmax(self._attention, dim=0)
        # A matrix product here is a product of one row for each node, which takes several times as long.
        return (attention.unsqueeze(-1) * states).sum(dim=-2)


class A3TGCN2(A3TGCN):
    r"""The model :class:`A3TGCN` under the name and constructor of the one that takes batches.

    Args:
        in_channels (int): ``F``.
        out_channels (int): ``H``.
        periods (int): ``T``.
        batch_size (int): not used; a batch may have any size.
        improved, cached, add_self_loops, backend: as for :class:`TGCN`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        periods: int,
        batch_size: int | None,
        improved: bool = False,
        cached: bool = False,
        add_self_loops: bool = True,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(in_channels, out_channels, periods, improved, cached, add_self_loops, backend=backend)
        self.batch_size = batch_size
