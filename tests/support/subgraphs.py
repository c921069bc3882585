"""The two-headed model of PyG on the subgraph of the stocks that are present, day by day, and its training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt import data


def stepped(model: Any, x: Tensor, edges: tuple[Tensor, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of both heads for ``x [S, T, F]``; an absent stock is in no subgraph and keeps its state."""
    subgraph = pytest.importorskip("torch_geometric.utils").subgraph
    backbone = model.tgcn_backbone
    states = [x.new_zeros(len(x), cell.lin_u.out_features) for cell in backbone.cells]
    for t in range(x.size(1)):
        there = present[:, t].nonzero()[:, 0]
        if not len(there):
            continue
        of_day = subgraph(there, *edges, relabel_nodes=True, num_nodes=len(x))
        step = x[there, t]
        for i, cell in enumerate(backbone.cells):
            step = cell(step, *of_day, states[i][there])
            states[i] = states[i].index_copy(0, there, step)
    features = backbone.out(states[-1])
    return model.signal_head(features), model.direction_head(features)


def losses(model: Any, dataset: data.WindowDataset, starts: Iterable[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Total, signal and direction loss of a batch of windows, by boolean indexing."""
    rows: list[list[Tensor]] = [[], [], [], []]
    for start in starts:
        days, end = slice(start, start + dataset.window), start + dataset.window - 1
        present = dataset.present[:, days]
        logits = stepped(model, dataset.series[:, days], (dataset.edge_index, dataset.edge_weight), present)
        counts = present[:, -1] & dataset.targets["target_mask"][:, end]
        labels = dataset.signal_labels[:, end], dataset.direction_labels[:, end]
        for found, one in zip(rows, (*logits, *labels), strict=True):
            found.append(one[counts])
    signal, direction, is_signal, is_up = (torch.cat(found) for found in rows)
    moved = is_signal == 1
    of_signal = F.cross_entropy(signal, is_signal)
    of_direction = F.cross_entropy(direction[moved], is_up[moved]) if moved.any() else direction.sum() * 0
    return of_signal + of_direction, of_signal, of_direction


def trained(
    model: Any, dataset: data.WindowDataset, starts: range, size: int, epochs: int, lr: float
) -> list[list[float]]:
    """A plain training; the losses of each epoch, averaged over its batches."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    found = []
    for _ in range(epochs):
        of_epoch = []
        for first in range(0, len(starts), size):
            terms = losses(model, dataset, starts[first : first + size])
            optimizer.zero_grad()
            terms[0].backward()
            optimizer.step()
            of_epoch.append(torch.stack(terms).detach())
        found.append(torch.stack(of_epoch).mean(0).tolist())
    return found
