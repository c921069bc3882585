"""The CSR of a graph under one self-loop rule, and the smallest part of it that repeats."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CSR(NamedTuple):
    """Compressed sparse rows under one self-loop rule, of a whole graph or of the template that it repeats.

    Shapes:
        - **rowptr**, **colptr:** ``[S+1]`` int32; **col**, **row**, **csr2csc:** ``[E]`` int32
        - **schedule:** int32, how the kernels walk the nodes: on a CPU ``[K+1]`` cuts of them that no edge crosses, on
          a GPU ``[S]`` nodes by decreasing degree
        - **e_id:** ``[E]`` int64, column of ``edge_index`` behind an entry, -1 for an added loop
        - **weight:** ``[E]`` weight (GATv2) or norm (GCN) of an entry, ``None`` for a GATv2 without weights
    """

    rowptr: Tensor
    col: Tensor
    colptr: Tensor
    row: Tensor
    csr2csc: Tensor
    schedule: Tensor
    e_id: Tensor
    weight: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """The argument ``csr`` of the convolution operators."""
        return list(self[:6])


def template(csr: CSR) -> CSR:
    """Cuts a CSR down to the smallest graph of which it is a row of equal copies."""
    nodes, used = csr.rowptr.numel() - 1, csr.col.numel()
    if nodes < 2:
        return csr
    rowptr = csr.rowptr.cpu()
    closed = torch.tensor(
        [size for size in range(1, nodes // 2 + 1) if nodes % size == 0], dtype=torch.int64, device=rowptr.device
    )
    closed = closed[rowptr[closed].long() * (nodes // closed) == used]
    for size in closed.tolist():
        per_copy = int(rowptr[size])
        if _is_periodic(csr, rowptr, size, nodes // size, per_copy):
            return CSR(
                rowptr=csr.rowptr[: size + 1].contiguous(),
                col=csr.col[:per_copy].contiguous(),
                colptr=csr.colptr[: size + 1].contiguous(),
                row=csr.row[:per_copy].contiguous(),
                csr2csc=csr.csr2csc[:per_copy].contiguous(),
                schedule=_cut_schedule(csr.schedule, size, csr.schedule.is_cuda),
                e_id=csr.e_id[:per_copy].contiguous(),
                weight=None if csr.weight is None else csr.weight[:per_copy].contiguous(),
            )
    return csr


def _is_periodic(csr: CSR, rowptr: Tensor, size: int, copies: int, per_copy: int) -> bool:
    degree = rowptr.diff().view(copies, size)
    if not torch.equal(degree, degree[:1].expand_as(degree)):
        return False
    shift = torch.arange(copies, device=csr.col.device, dtype=torch.int32).unsqueeze(1) * size
    col = csr.col.view(copies, per_copy) - shift
    if not torch.equal(col, col[:1].expand_as(col)) or bool((col[0] >= size).any()):
        return False
    if csr.weight is None:
        return True
    weight = csr.weight.view(copies, per_copy)
    return torch.equal(weight, weight[:1].expand_as(weight))


def by_degree(rowptr: Tensor) -> Tensor:
    """Nodes by decreasing number of entries, ``[S]`` int32."""
    return torch.argsort(rowptr.diff(), descending=True, stable=True).to(torch.int32)


def _cut_schedule(schedule: Tensor, size: int, ordered: bool) -> Tensor:
    inside = schedule[schedule < size]
    # Copies have the same degrees, so the order of the nodes of one is that of the graph.
    return inside if ordered else torch.cat([inside, schedule.new_tensor([size])])
