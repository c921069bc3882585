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
    """Mean attention of one convolution, over windows and days.

    Shapes:
        - **matrix:** ``[S, S]``: row target, column source, diagonal the node itself; each row adds up to 1
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
        starts (sequence of int): first days of the windows, of which up to 64, evenly spaced, are read, and of those
            the ones on whose days every stock is present.

    Returns:
        One entry per convolution; none for a GCN.
    """
    starts = starts[:: max(1, -(-len(starts) // _MOST_WINDOWS))]
    if dataset.present is not None:
        every = dataset.present.all(dim=0).tolist()
        starts = [start for start in starts if all(every[start : start + dataset.window])]
    backbone = getattr(model, "tgcn_backbone", model)
    if not len(starts) or not all(isinstance(cell.gcn, GAT) for cell in backbone.cells):
        return []
    total: Any = 0.0
    for first in range(0, len(starts), _CHUNK):
        part = starts[first : first + _CHUNK]
        x = torch.stack([dataset.series[:, start : start + dataset.window] for start in part])
        edges, alpha = model.attention_weights(x if model.layout == "NTF" else x.transpose(-1, -2), dataset.graph)
        total = total + alpha.double().sum(dim=(2, 4))  # over windows and days: [layers, convolutions, E]
    source, target = edges.cpu().numpy()
    nodes = dataset.num_stocks
    uniform = np.zeros((nodes, nodes))
    np.add.at(uniform, (target, source), 1 / np.bincount(target, minlength=nodes)[target])
    found = []
    for i, layer in enumerate((total / (len(starts) * dataset.window)).cpu().numpy()):
        for k, mean in enumerate(layer):
            matrix = np.zeros((nodes, nodes))
            np.add.at(matrix, (target, source), mean)
            found.append(Attention(f"layer {i + 1}, convolution {k + 1}", matrix, uniform))
    return found
