"""Helpers of tests and benchmarks: one table of tolerances, and graphs of realistic sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """A difference of at most ``rtol * |expected| + atol`` is accepted."""

    rtol: float
    atol: float


# Element by element, values of a whole model against an oracle in the same dtype.
_VALUES = {
    torch.float64: Tolerance(1e-9, 1e-11),
    torch.float32: Tolerance(2e-4, 2e-5),
    torch.bfloat16: Tolerance(4e-2, 4e-2),
    torch.float16: Tolerance(5e-3, 5e-3),
}
# Gradients are sums over many rows: ten times the tolerance of values, element by element.
_GRADIENTS = {dtype: Tolerance(10 * _VALUES[dtype].rtol, 10 * _VALUES[dtype].atol) for dtype in list(_VALUES)[:2]}
# The terms of a sum are rounded to 8 or 11 bits. An element whose terms cancel is all rounding error, the tensor as a
# whole is not: the norm of its error is about 0.3 % of the norm of the gradient.
_GRADIENT_NORM = Tolerance(2e-2, 1e-3)


def tolerance(dtype: torch.dtype, *, gradient: bool = False) -> Tolerance:
    """The tolerance of a dtype: for each element, or for the norm of a gradient in a 16-bit type.

    Args:
        dtype (torch.dtype): of the computation.
        gradient (bool): of a gradient, or of a value. (default: ``False``)
    """
    return _GRADIENTS.get(dtype, _GRADIENT_NORM) if gradient else _VALUES[dtype]


def assert_close(
    actual: Tensor,
    expected: Tensor,
    *,
    gradient: bool = False,
    scaled: bool = False,
    dtype: torch.dtype | None = None,
    rtol: float | None = None,
    message: str = "",
) -> None:
    """Compares with the tolerance of `dtype`; NaN equals NaN, and an infinity the same infinity.

    Args:
        gradient (bool): the tolerance of gradients; in a 16-bit type they are compared in the norm.
        scaled (bool): multiply ``atol`` by the largest element of `expected` if that exceeds 1, for sums whose terms
            are much larger than most of the results.
        dtype (torch.dtype, optional): the dtype of the computation. (default: that of `actual`)
        rtol (float, optional): in place of that of the table; the caller gives the reason.
        message (str): what is compared.
    """
    dtype = dtype or actual.dtype
    limit = tolerance(dtype, gradient=gradient)
    limit = limit._replace(rtol=limit.rtol if rtol is None else rtol)
    prefix = f"{message}: " if message else ""
    if gradient and dtype not in _GRADIENTS:
        _assert_norm_close(actual.double(), expected.double(), limit, prefix)
        return
    wanted = expected.to(actual.dtype)
    if scaled and wanted.numel():
        limit = limit._replace(atol=limit.atol * max(1.0, float(wanted.abs().max())))
    torch.testing.assert_close(
        actual,
        wanted,
        rtol=limit.rtol,
        atol=limit.atol,
        equal_nan=True,
        msg=lambda text: f"{prefix}{text}",
    )


def _assert_norm_close(actual: Tensor, expected: Tensor, limit: Tolerance, prefix: str) -> None:
    assert actual.shape == expected.shape, f"{prefix}expected a shape {expected.shape}, got {actual.shape}"
    finite = expected.isfinite()
    special = torch.where(finite, 0, expected)
    assert torch.equal(torch.where(actual.isfinite(), 0, actual).nan_to_num(7), special.nan_to_num(7)), (
        f"{prefix}NaN or infinity in other places"
    )
    error, norm = float((actual - expected)[finite].norm()), float(expected[finite].norm())
    assert error <= limit.rtol * norm + limit.atol, (
        f"{prefix}the error has the norm {error:.3g}, the gradient {norm:.3g}: {error / max(norm, 1e-300):.2%}"
    )


def stock_graph(num_nodes: int = 100, num_edges: int = 720, isolated: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric graph without loops, weights in (0, 1], the last nodes isolated, as stock correlations give it.

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
    """The disjoint union of equal copies of a graph, as a PyG ``Batch`` stores it.

    Args:
        edge_index (Tensor): ``[2, E]``.
        edge_weight (Tensor, optional): ``[E]``.
        num_nodes (int): nodes of one copy.
        copies (int): number of copies.

    Returns:
        ``edge_index [2, copies * E]`` and ``edge_weight [copies * E]`` or ``None``.
    """
    shift = torch.arange(copies, dtype=edge_index.dtype, device=edge_index.device)
    shift = shift.repeat_interleave(edge_index.size(1)) * num_nodes
    return edge_index.repeat(1, copies) + shift, None if edge_weight is None else edge_weight.repeat(copies)
