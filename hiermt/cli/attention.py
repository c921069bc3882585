"""Mean attention of each edge: what a trained model reads of its neighbours."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt.data import WindowDataset
from hiermt.nn import TGCN_HierarchicalMT
from hiermt.nn.conv import GAT, GATv2Conv
from hiermt.reference import GATV2_RULE
from hiermt.reference.convolution import ATTENTION_SLOPE, Edges

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
def mean_attention(model: TGCN_HierarchicalMT, dataset: WindowDataset, starts: range) -> list[Attention]:
    r"""Attention of each convolution (:math:`\alpha_{ij}` of :func:`hiermt.functional.gatv2_conv`), averaged.

    Args:
        model (TGCN_HierarchicalMT): with GATv2 convolutions; a GCN has no attention.
        dataset (WindowDataset): on the device of the model.
        starts (range): first days of the windows, of which up to 64, evenly spaced, are read.

    Returns:
        One entry per convolution; none for a GCN.
    """
    cells: Any = model.tgcn_backbone.cells
    starts = starts[:: max(1, -(-len(starts) // _MOST_WINDOWS))]
    if not len(starts) or not all(isinstance(cell.gcn, GAT) for cell in cells):
        return []
    graph, weight = dataset.graph, next(model.parameters())
    csr = graph.csr(GATV2_RULE, True, weight.dtype, whole=True)
    edges = Edges((csr.rowptr, csr.col))
    totals: dict[str, Tensor] = {}
    for first in range(0, len(starts), _CHUNK):
        part = starts[first : first + _CHUNK]
        h = torch.cat([dataset.series[:, start : start + dataset.window] for start in part])  # [B * S, T, F]
        for i, cell in enumerate(cells):
            x = h
            for k, conv in enumerate(cell.gcn.convs):
                name = f"layer {i + 1}, convolution {k + 1}"
                alpha = attention(conv, x, edges, csr.weight)
                totals[name] = totals.get(name, 0) + alpha.double().sum(1)
                x = conv.convolve(x, graph, "leaky_relu", "auto")
            h = cell.run_sequence(h, graph, cell.op_parameters(), sequence=True)
    shape, index = (edges.num_nodes, edges.num_nodes), (edges.row.cpu().numpy(), edges.source.cpu().numpy())
    counts = np.bincount(index[0], minlength=edges.num_nodes)
    uniform = np.zeros(shape)
    np.add.at(uniform, index, 1 / counts[index[0]])
    found = []
    for name, total in totals.items():
        matrix = np.zeros(shape)
        np.add.at(matrix, index, total.cpu().numpy() / (len(starts) * dataset.window))
        found.append(Attention(name, matrix, uniform))
    return found


def attention(conv: GATv2Conv, x: Tensor, edges: Edges, edge_weight: Tensor | None) -> Tensor:
    """Attention of each CSR entry in each copy and step, ``[B * S, T, F] -> [E, B * T]``."""
    nodes = edges.num_nodes

    def of_nodes(y: Tensor) -> Tensor:
        return y.view(-1, nodes, *y.shape[1:]).transpose(0, 1).reshape(nodes, -1, y.size(-1))  # [S, B * T, H]

    z: Tensor = of_nodes(conv.lin_l(x))[edges.source] + of_nodes(conv.lin_r(x))[edges.row]
    if edge_weight is not None and conv.lin_edge is not None:
        z = z + conv.lin_edge(edge_weight.unsqueeze(-1)).unsqueeze(1)
    score: Tensor = F.leaky_relu(z, ATTENTION_SLOPE) @ conv.att.flatten()  # [E, B * T]
    index = edges.row.unsqueeze(1).expand_as(score)
    largest = score.new_full((nodes, score.size(1)), -torch.inf).scatter_reduce(0, index, score, "amax")
    exp = (score - largest[edges.row]).exp()
    total = exp.new_zeros(nodes, exp.size(1)).index_add(0, edges.row, exp)
    return exp / total[edges.row]
