"""Validation of ``edge_index`` and ``edge_weight``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hiermt._arguments import check_dense
from hiermt.native import dispatch


def check_edges(edge_index: Tensor | Any, edge_weight: Tensor | None) -> None:
    """Raises ``TypeError`` or ``ValueError`` unless types, shapes and devices are those of :class:`hiermt.Graph`."""
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
        raise TypeError(f"edge_index: expected a Tensor [2, E] or a hiermt.Graph, got {_described(edge_index)}")
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"edge_index: expected int64 or int32, got {edge_index.dtype}; use edge_index.long()")
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"edge_index: expected shape [2, E], got {list(edge_index.shape)}")
    if edge_weight is None:
        return
    if not isinstance(edge_weight, Tensor):
        raise TypeError(f"edge_weight: expected a Tensor or None, got {type(edge_weight).__name__}")
    check_dense("edge_weight", edge_weight)
    if not edge_weight.is_floating_point():
        raise TypeError(f"edge_weight: expected floating point, got {edge_weight.dtype}; use edge_weight.float()")
    edges = edge_index.size(1)
    if edge_weight.shape not in ((edges,), (edges, 1)):
        raise ValueError(f"edge_weight: expected {edges} weights, one per edge, got {list(edge_weight.shape)}")
    if edge_weight.device != edge_index.device:
        raise ValueError(f"edge_weight is on {edge_weight.device}, edge_index on {edge_index.device}; move one")


def _described(edge_index: object) -> str:
    """What came in place of an edge_index, and the way out."""
    if edge_index is None:
        return "None; call the model with (x, edge_index, edge_weight)"
    layout = getattr(edge_index, "layout", type(edge_index).__name__)
    if isinstance(edge_index, Tensor) or type(edge_index).__name__ == "SparseTensor":
        return (
            f"a sparse adjacency matrix ({layout}), as adj_t is one; convert it: edge_index, edge_weight = "
            "torch_geometric.utils.to_edge_index(adj_t.t())"
        )
    return type(edge_index).__name__


def check_range(edge_index: Tensor, num_nodes: int) -> None:
    """Raises ``IndexError`` unless all indices lie in ``[0, num_nodes)``. On a GPU this syncs."""
    if not edge_index.numel():
        return
    low, high = torch.stack(edge_index.aminmax()).tolist()
    if low < 0 or high >= num_nodes:
        raise IndexError(f"edge_index: {low if low < 0 else high} is outside [0, {num_nodes}), the range of the nodes")


def is_differentiated(weight: Tensor) -> bool:
    """Whether `weight` carries a gradient, a tangent or a batch: it must not be detached, cached or compared."""
    if weight.requires_grad:
        return True
    if not dispatch.transformed():
        return False
    if is_wrapped(weight):
        return True
    return forward_ad.unpack_dual(weight).tangent is not None  # type: ignore[no-untyped-call]


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` made the tensor or batched it."""
    return dispatch.transformed() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)
