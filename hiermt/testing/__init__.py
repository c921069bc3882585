"""What tests and benchmarks share: one table of tolerances and the graphs people meet in practice."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """Arguments of ``torch.testing.assert_close``."""

    rtol: float
    atol: float


# Values of a whole model against an oracle in the same dtype; gradients sum over many rows and get ten times that.
_TOLERANCES = {
    torch.float64: Tolerance(1e-9, 1e-11),
    torch.float32: Tolerance(2e-4, 2e-5),
    torch.bfloat16: Tolerance(4e-2, 4e-2),
    torch.float16: Tolerance(5e-3, 5e-3),
}


def tolerance(dtype: torch.dtype, *, gradient: bool = False) -> Tolerance:
    """The tolerance of `dtype`, for values or for gradients."""
    found = _TOLERANCES[dtype]
    return Tolerance(found.rtol * 10, found.atol * 10) if gradient else found


def assert_close(actual: Tensor, expected: Tensor, *, gradient: bool = False, message: str = "") -> None:
    """``torch.testing.assert_close`` with the tolerance of the dtype of `actual`; NaN equals NaN."""
    found = tolerance(actual.dtype, gradient=gradient)
    torch.testing.assert_close(
        actual,
        expected.to(actual.dtype),
        rtol=found.rtol,
        atol=found.atol,
        equal_nan=True,
        msg=(lambda text: f"{message}: {text}") if message else None,
    )


def stock_graph(num_nodes: int = 100, num_edges: int = 720, isolated: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric graph without loops, weights in (0, 1], the last nodes isolated: what correlations of stocks give.

    Args:
        num_nodes (int): stocks. (default: ``100``)
        num_edges (int): directed edges, an even number. (default: ``720``)
        isolated (int): nodes without an edge. (default: ``3``)
        seed (int): of the random generator. (default: ``0``)

    Shapes:
        - **returns:** edge_index ``[2, num_edges]``, edge_weight ``[num_edges]``
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    connected = num_nodes - isolated
    upper = torch.triu_indices(connected, connected, 1, dtype=torch.int64, device="cpu")
    chosen = torch.randperm(upper.size(1), generator=generator, dtype=torch.int64, device="cpu")
    pair = upper[:, chosen[: num_edges // 2].sort().values]
    weight = 1 - torch.rand(pair.size(1), generator=generator, dtype=torch.float32, device="cpu")
    return torch.cat([pair, pair.flip(0)], dim=1), torch.cat([weight, weight])


def batched(
    edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int, copies: int
) -> tuple[Tensor, Tensor | None]:
    """The disjoint union of equal copies of a graph, as a PyG ``Batch`` stores it."""
    shift = torch.arange(copies, dtype=edge_index.dtype, device=edge_index.device)
    shift = shift.repeat_interleave(edge_index.size(1)) * num_nodes
    return edge_index.repeat(1, copies) + shift, None if edge_weight is None else edge_weight.repeat(copies)
