"""Weights of CSR entries: those of added self loops (GATv2) and the symmetric degree norm (GCN)."""

from __future__ import annotations

import torch
from torch import Tensor

from hiermt.native import dispatch
from hiermt.reference.convolution import entry_rows


def gatv2_weight(rowptr: Tensor, e_id: Tensor, edge_weight: Tensor) -> Tensor:
    """Weight of each entry; an added loop has the mean of the node's incoming weights, 0 if there are none."""
    row = entry_rows(rowptr, e_id.numel())
    weight = torch.cat([edge_weight, edge_weight.new_zeros(1)])
    weight = weight.index_select(0, torch.where(e_id < 0, edge_weight.numel(), e_id))
    count = _row_sums(rowptr, (e_id >= 0).to(weight.dtype))
    mean = _row_sums(rowptr, weight) / count.clamp(min=1)
    return torch.where(e_id < 0, mean.index_select(0, row), weight)


def gcn_weight(
    edges: Tensor,
    rowptr: Tensor,
    col: Tensor,
    e_id: Tensor,
    edge_weight: Tensor | None,
    dtype: torch.dtype,
    loop_weight: float = 1.0,
) -> Tensor:
    """Weight of each entry of a GCN, at least in float32; an added loop weighs `loop_weight`.

    With a `loop_weight` of 0 no loop counts that was not in `edges`, and repeated loops have the sum of their weights.
    """
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    if edge_weight is None:
        weight = torch.ones(e_id.shape, dtype=accumulate, device=e_id.device)
        if loop_weight != 1.0:
            weight = weight.masked_fill(e_id < 0, loop_weight)
    else:
        weight = edge_weight.to(accumulate)
        weight = torch.cat([weight, weight.new_full((1,), loop_weight)])
        weight = weight.index_select(0, torch.where(e_id < 0, edge_weight.numel(), e_id))
    if loop_weight == 0.0:
        row = entry_rows(rowptr, e_id.numel())
        loops = _loop_weights(edges, None if edge_weight is None else edge_weight.to(accumulate), weight, rowptr)
        weight = torch.where(col == row, _pick(loops, row), weight)
    return weight


def gcn_norm(rowptr: Tensor, col: Tensor, weight: Tensor) -> Tensor:
    """``d_j^-1/2 w_ij d_i^-1/2`` of each entry."""
    row = entry_rows(rowptr, col.numel())
    scale = _row_sums(rowptr, weight).pow(-0.5)
    scale = scale.masked_fill(scale == torch.inf, 0.0)
    return _pick(scale, col) * weight * _pick(scale, row)


def _loop_weights(edges: Tensor, edge_weight: Tensor | None, like: Tensor, rowptr: Tensor) -> Tensor:
    """Sum of the weights of the loops of each node, and a zero for the row that padding belongs to."""
    source, target = edges.long().unbind(0)
    weight = like.new_ones(source.shape) if edge_weight is None else edge_weight
    weight = torch.where(source == target, weight, 0.0)
    sums = like.new_zeros(rowptr.numel())
    # On a GPU index_add adds atomically, while index_put sorts.
    return sums.index_put((target,), weight, accumulate=True) if sums.is_cuda else sums.index_add(0, target, weight)


def _row_sums(rowptr: Tensor, values: Tensor) -> Tensor:
    """Sum over the entries of each row, in their order, and a zero for the row that padding belongs to."""
    # segment_reduce supports neither transforms nor a second derivative; index_add is not deterministic on a GPU.
    if dispatch.transformed() or (values.requires_grad and not values.is_cuda and not torch.compiler.is_compiling()):
        row = entry_rows(rowptr, values.size(0))
        sums = values.new_zeros(rowptr.numel()).index_add(0, row, values)
        return torch.nn.functional.pad(sums[:-1], (0, 1))
    sums = torch.segment_reduce(values, "sum", offsets=rowptr, unsafe=True, initial=0)
    return torch.nn.functional.pad(sums, (0, 1))


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]`` with a deterministic gradient.

    On a GPU that of indexing sorts and that of `index_select` adds atomically; on a CPU it is the other way round.
    """
    return values[index] if values.is_cuda else values.index_select(0, index)
