"""The CSR of a graph under one self-loop rule: its weights, and the smallest part that it repeats."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hiermt import reference
from hiermt.native import dispatch


class Entries(NamedTuple):
    """The CSR of one self-loop rule: of the whole graph, or of the template of a graph that is made of equal copies.

    Shapes:
        - **rowptr**, **colptr:** ``[S+1]`` int32; **col**, **row**, **csr2csc:** ``[E]`` int32
        - **blocks:** ``[K+1]`` int32, node ranges that no edge leaves; ``[0]`` on a GPU, whose kernels need none
        - **edge:** ``[E]`` int64, column of ``edge_index`` behind an entry, -1 for an added loop
        - **weight:** ``[E]`` weight (GATv2) or norm (GCN) of an entry, ``None`` for a GATv2 without weights
    """

    rowptr: Tensor
    col: Tensor
    colptr: Tensor
    row: Tensor
    csr2csc: Tensor
    blocks: Tensor
    edge: Tensor
    weight: Tensor | None

    @property
    def csr(self) -> list[Tensor]:
        """The six tensors every convolution operator takes."""
        return [self.rowptr, self.col, self.colptr, self.row, self.csr2csc, self.blocks]


def gatv2_weight(rowptr: Tensor, edge: Tensor, edge_weight: Tensor) -> Tensor:
    """Weight of each entry; an added loop has the mean of the node's incoming weights, 0 if there are none."""
    row = reference.entry_rows(rowptr, edge.numel())
    weight = torch.cat([edge_weight, edge_weight.new_zeros(1)])
    weight = weight.index_select(0, torch.where(edge < 0, edge_weight.numel(), edge))
    count = _row_sums(rowptr, (edge >= 0).to(weight.dtype))
    mean = _row_sums(rowptr, weight) / count.clamp(min=1)
    return torch.where(edge < 0, mean.index_select(0, row), weight)


def gcn_norm(rowptr: Tensor, col: Tensor, edge: Tensor, edge_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``d_j^-1/2 w_ij d_i^-1/2`` of each entry; an added loop weighs 1."""
    row = reference.entry_rows(rowptr, edge.numel())
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    if edge_weight is None:
        weight = torch.ones(edge.shape, dtype=accumulate, device=edge.device)
    else:
        weight = edge_weight.to(accumulate)
        weight = torch.cat([weight, weight.new_ones(1)])
        weight = weight.index_select(0, torch.where(edge < 0, edge_weight.numel(), edge))
    scale = _row_sums(rowptr, weight).pow(-0.5)
    scale = scale.masked_fill(scale == torch.inf, 0.0)
    return (_pick(scale, col) * weight * _pick(scale, row)).to(dtype)


def _row_sums(rowptr: Tensor, values: Tensor) -> Tensor:
    """Sum over the entries of each row, in their order, and a zero for the row that padding belongs to."""
    # segment_reduce has no rules for transforms and no second derivative; on a GPU index_add adds in any order.
    if dispatch.transformed() or (values.requires_grad and not values.is_cuda and not torch.compiler.is_compiling()):
        row = reference.entry_rows(rowptr, values.size(0))
        sums = values.new_zeros(rowptr.numel()).index_add(0, row, values)
        return torch.nn.functional.pad(sums[:-1], (0, 1))
    sums = torch.segment_reduce(values, "sum", offsets=rowptr, unsafe=True, initial=0)
    return torch.nn.functional.pad(sums, (0, 1))


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``, whose gradient adds up in a fixed order: on a GPU indexing sorts, where `index_select` adds
    atomically, and on a CPU it is the other way round."""
    return values[index] if values.is_cuda else values.index_select(0, index)


def template(entries: Entries) -> Entries:
    """Cuts the CSR down to the smallest graph of which it is a row of equal copies."""
    nodes, used = entries.rowptr.numel() - 1, entries.col.numel()
    if nodes < 2:
        return entries
    rowptr = entries.rowptr.cpu()
    closed = torch.tensor(
        [size for size in range(1, nodes // 2 + 1) if nodes % size == 0], dtype=torch.int64, device=rowptr.device
    )
    closed = closed[rowptr[closed].long() * (nodes // closed) == used]
    for size in closed.tolist():
        copies, per_copy = nodes // size, int(rowptr[size])
        if _is_periodic(entries, rowptr, size, copies, per_copy):
            return Entries(
                rowptr=entries.rowptr[: size + 1].contiguous(),
                col=entries.col[:per_copy].contiguous(),
                colptr=entries.colptr[: size + 1].contiguous(),
                row=entries.row[:per_copy].contiguous(),
                csr2csc=entries.csr2csc[:per_copy].contiguous(),
                blocks=_cut_blocks(entries.blocks, size),
                edge=entries.edge[:per_copy].contiguous(),
                weight=None if entries.weight is None else entries.weight[:per_copy].contiguous(),
            )
    return entries


def _is_periodic(entries: Entries, rowptr: Tensor, size: int, copies: int, per_copy: int) -> bool:
    degree = rowptr.diff().view(copies, size)
    if not torch.equal(degree, degree[:1].expand_as(degree)):
        return False
    shift = torch.arange(copies, device=entries.col.device, dtype=torch.int32).unsqueeze(1) * size
    col = entries.col.view(copies, per_copy) - shift
    if not torch.equal(col, col[:1].expand_as(col)) or bool((col[0] >= size).any()):
        return False
    if entries.weight is None:
        return True
    weight = entries.weight.view(copies, per_copy)
    return torch.equal(weight, weight[:1].expand_as(weight))


def _cut_blocks(blocks: Tensor, size: int) -> Tensor:
    if blocks.is_cuda:
        return blocks
    inside = blocks[blocks < size]
    return torch.cat([inside, blocks.new_tensor([size])])
