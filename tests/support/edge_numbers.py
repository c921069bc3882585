"""One number that is not like the others, in each tensor of a call in turn, and what comes out of it.

Native and reference results are told apart by where they are NaN, infinite (and of which sign) or finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from support.single_convolutions import ops, reference

NUMBERS = {
    "inf": float("inf"),
    "-inf": float("-inf"),
    "nan": float("nan"),
    "1e30": 1e30,
    "-1e30": -1e30,
    "1e-41": 1e-41,
}


class Place(NamedTuple):
    """Element `at` of the floating-point tensor `leaf` of a call."""

    leaf: int
    at: int


def leaves_of(arguments: tuple[Any, ...]) -> list[Tensor]:
    """The floating-point tensors of a call, in order."""
    found: list[Tensor] = []
    for value in arguments:
        if isinstance(value, list):
            found += leaves_of(tuple(value))
        elif isinstance(value, Tensor) and value.is_floating_point():
            found.append(value)
    return found


def places(arguments: tuple[Any, ...]) -> Iterator[Place]:
    """Some elements of every tensor: the first, the last, and one between."""
    for leaf, tensor in enumerate(leaves_of(arguments)):
        for at in sorted({0, tensor.numel() // 2, tensor.numel() - 1} - {-1}):
            yield Place(leaf, at)


def run(op: str, arguments: tuple[Any, ...], place: Place, number: float, native: bool) -> list[Tensor | None]:
    """The outputs and the gradients of all leaves with `number` put in `place`."""
    leaves: list[Tensor] = []

    def replace(value: Any) -> Any:
        if isinstance(value, list):
            return [replace(one) for one in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        copy = value.contiguous().clone()
        if len(leaves) == place.leaf:
            copy.view(-1)[place.at] = number
        leaves.append(copy.requires_grad_())
        return leaves[-1]

    out = getattr(ops if native else reference, op)(*[replace(value) for value in arguments])
    outputs = [one for one in ([out] if isinstance(out, Tensor) else list(out)) if one.is_floating_point()]
    wanted = [one for one in outputs if one.requires_grad]
    seeds = [torch.linspace(-1, 1, max(one.numel(), 2), dtype=one.dtype)[: one.numel()].view_as(one) for one in wanted]
    gradients = torch.autograd.grad(wanted, leaves, seeds, allow_unused=True) if wanted else ()
    return [*[one.detach() for one in outputs], *gradients]


def pattern(tensor: Tensor) -> Tensor:
    """0 finite, 1 and -1 infinite, 2 NaN."""
    kinds = torch.zeros(tensor.shape, dtype=torch.int8)
    kinds[tensor == torch.inf], kinds[tensor == -torch.inf], kinds[tensor.isnan()] = 1, -1, 2
    return kinds
