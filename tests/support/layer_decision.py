"""A layer that ends in a decision, and the same as two operators: layer, then decision of its last state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hiermt import ops
from support.calls import Call, prepare
from support.present import masks
from support.problems import Problem

OPERATOR = "tgcn_layer_decision"
# Bits of `outputs` and the results that they ask for.
WANTED = ((1, 0), (1, 1), (2, 2), (4, 3), (8, 4))


def with_masks(problem: Problem) -> Iterator[Problem]:
    """The problem, and with stocks that come and go."""
    yield problem
    nodes, steps = problem.arguments[0].shape[:2]
    if nodes and steps:
        yield problem._replace(arguments=(*problem.arguments, masks(nodes, steps)["random"]), label="masked")


def in_one(call: Call, outputs: int = ops.ALL) -> tuple[Tensor, ...]:
    """The results of the operator."""
    return ops.tgcn_layer_decision(*call.arguments, **call.options, outputs=outputs)


def in_two(call: Call, outputs: int = ops.ALL) -> tuple[Tensor, ...]:
    """The results of the two operators."""
    x, csr, weight, convs, gates, heads, *rest = call.arguments
    layer: dict[str, Any] = {**call.options, "sequence": False}
    threshold = layer.pop("threshold")
    return ops.decision(ops.tgcn_layer(x, csr, weight, convs, gates, *rest, **layer), *heads, threshold, outputs)


def check(problem: Problem, dtype: torch.dtype) -> None:
    """The same bits in one operator and in two, with and without a mask; what is not wanted is empty."""
    for one in with_masks(problem):
        call = prepare(one, dtype)
        expected = in_two(call)
        for outputs in (ops.ALL, 1, 14, 6, 0):
            found = in_one(call, outputs)
            for bit, index in WANTED:
                truth = expected[index] if outputs & bit else expected[index][:0]
                assert found[index].dtype == truth.dtype and torch.equal(found[index], truth), f"{one}: {index}"
