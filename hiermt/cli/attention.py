"""Mean attention of each edge: what a trained model reads of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hiermt.data import WindowDataset
from hiermt.nn.conv import GAT

_MOST_WINDOWS, _CHUNK = 64, 8


class Attention(NamedTuple):
    """Mean attention of one convolution, over windows and the days on which the target is present.

    Shapes:
        - **matrix:** ``[S, S]``: row target, column source, diagonal the node itself; each row adds up to 1, or to 0 if
          the target is never present
        - **uniform:** the same if all entries of a row were equal
    """

    name: str
    matrix: npt.NDArray[np.float64]
    uniform: npt.NDArray[np.float64]


@torch.no_grad()
def mean_attention(model: Any, dataset: WindowDataset, starts: Sequence[int]) -> list[Attention]:
    r"""Attention of each convolution (:math:`\alpha_{ij}` of :func:`hiermt.functional.gatv2_conv`), averaged.

    Args:
        model (Module): of this package, with GATv2 convolutions; a GCN has no attention.
        dataset (WindowDataset): on the device of the model.
        starts (sequence of int): first days of the windows, of which up to 64, evenly spaced, are read.

    Returns:
        One entry per convolution; none for a GCN.
    """
    starts = starts[:: max(1, -(-len(starts) // _MOST_WINDOWS))]
    backbone = getattr(model, "tgcn_backbone", model)
    if not len(starts) or not all(isinstance(cell.gcn, GAT) for cell in backbone.cells):
        return []
    # Tensors after the first chunk, on its device.
    total: Any = 0.0
    equal: Any = 0.0
    days: Any = 0.0
    for first in range(0, len(starts), _CHUNK):
        part = starts[first : first + _CHUNK]
        x, present = (_windows(one, part, dataset.window) for one in (dataset.series, dataset.present))
        x = x if model.layout == "NTF" else x.transpose(-1, -2)
        edges, alpha = model.attention_weights(x, dataset.graph, present=present)
        total = total + alpha.double().sum(dim=(2, 4))  # over windows and days: [layers, convolutions, E]
        there = alpha.new_ones(alpha.size(2), dataset.num_stocks, alpha.size(4)).double()
        if present is not None:
            there = there * present
        equal = equal + _uniform(edges, there)
        days = days + there.sum(dim=(0, 2))
    source, target = edges.cpu().numpy()
    nodes = dataset.num_stocks

    def matrix_of(sums: torch.Tensor) -> npt.NDArray[np.float64]:
        matrix = np.zeros((nodes, nodes))
        np.add.at(matrix, (target, source), (sums / days.clamp(min=1)[edges[1]]).cpu().numpy())
        return matrix

    uniform = matrix_of(equal)
    return [
        Attention(f"layer {i + 1}, convolution {k + 1}", matrix_of(mean), uniform)
        for i, layer in enumerate(total)
        for k, mean in enumerate(layer)
    ]


def _windows(series: Any, starts: Sequence[int], window: int) -> Any:
    """The windows of a series ``[S, D, ...]``, or of none, as ``[B, S, window, ...]``."""
    return None if series is None else torch.stack([series[:, start : start + window] for start in starts])


def _uniform(edges: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Sum over windows and days of the attention if all entries of a row were equal: ``[B, S, T] -> [E]``."""
    source, target = edges
    comes_in = there[:, source] * there[:, target]
    count = torch.zeros_like(there).index_add_(1, target, comes_in)
    return (comes_in / count.clamp(min=1)[:, target]).sum(dim=(0, 2))
