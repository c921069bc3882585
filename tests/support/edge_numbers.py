"""One number that is not like the others, in each tensor of a call in turn, and what comes out of it.

Native and reference results are told apart by where they are NaN, infinite (and of which sign) or finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from support.calls import gradients, outputs_of, prepare
from support.problems import Problem

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


def places(problem: Problem) -> Iterator[tuple[Place, str, float]]:
    """Every number in every tensor: in turn in its first and last element and in one between."""
    for leaf, tensor in enumerate(prepare(problem).leaves):
        elements = sorted({0, tensor.numel() // 2, tensor.numel() - 1} - {-1})
        for i, (name, number) in enumerate(NUMBERS.items()):
            if elements:
                yield Place(leaf, elements[(leaf + i) % len(elements)]), name, number


def run(problem: Problem, place: Place, number: float, native: bool) -> list[Tensor | None]:
    """The outputs and the gradients of all leaves with `number` put in `place`."""
    call = prepare(problem)
    with torch.no_grad():
        call.leaves[place.leaf].view(-1)[place.at] = number
    outputs = [one for one in outputs_of(problem.op, call, native) if one.is_floating_point()]
    return [*[one.detach() for one in outputs], *gradients(outputs, call.leaves)]


def pattern(tensor: Tensor) -> Tensor:
    """0 finite, 1 and -1 infinite, 2 NaN."""
    kinds = torch.zeros(tensor.shape, dtype=torch.int8)
    kinds[tensor == torch.inf], kinds[tensor == -torch.inf], kinds[tensor.isnan()] = 1, -1, 2
    return kinds
