"""Numbers that are not finite in a call with a mask, and where PyG has them on the subgraph of each day.

PyG computes nothing for an absent stock, where a product with a zero would be NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

import hiermt
from hiermt import functional
from support import present as oracle
from support.edge_numbers import pattern
from support.present_layer import STEPS, Layer, gradients

NUMBERS = [float("inf"), float("-inf"), float("nan")]
STARTS, WINDOW = torch.tensor([2, 0, 3, 2]), 4
Within = Callable[[], AbstractContextManager[object]]


def spoilt(base: Layer, dtype: torch.dtype = torch.float32, numbers: int = 3) -> Iterator[tuple[str, Layer]]:
    """`numbers` of them in each tensor in turn: in its first, last or middle element; of x where it is read."""
    for leaf in range(len(base.leaves)):
        for i in range(numbers):
            number = NUMBERS[(i + leaf // 3) % 3]
            problem = base.with_leaves(dtype)
            tensor = problem.leaves[leaf]
            at = (0, tensor.numel() // 2, tensor.numel() - 1)[(leaf + i) % 3]
            if leaf == 0:
                stock, day = problem.present.nonzero()[at % int(problem.present.sum())].tolist()
                at = (stock * tensor.size(1) + day) * tensor.size(2)
            with torch.no_grad():
                tensor.view(-1)[at] = number
            yield f"{number} in tensor {leaf}", problem


def check_layer(where: str, problem: Layer, backends: Sequence[str], within: Within = nullcontext) -> None:
    """`within` is entered for the calls of the backends alone."""
    exact = problem.with_leaves(torch.float32)
    expected = _results(exact.expected(), exact.leaves)
    for backend in backends:
        with within():
            found = _results(problem.run(backend), problem.leaves)
        _assert_same_places(f"{backend}, {where}", found, expected)


def over_windows(base: Layer) -> Layer:
    """With the initial states of :func:`check_windows`."""
    return base._replace(h0=torch.randn(len(STARTS) * base.x.size(0), base.h0.size(1)))


def check_windows(where: str, problem: Layer, backends: Sequence[str], within: Within = nullcontext) -> None:
    exact = problem.with_leaves(torch.float32)
    x, present = (
        torch.cat([one[:, start : start + WINDOW] for start in STARTS.tolist()]) for one in (exact.x, exact.present)
    )
    expected = _results(exact.expected(x, present, exact.h0), exact.leaves)
    for backend in backends:
        with within():
            windows = hiermt.Windows(problem.x, STARTS, WINDOW, problem.present)
            y = functional.tgcn_layer(
                windows, problem.graph, problem.convs, problem.gates, h0=problem.h0, **problem.options, backend=backend
            )
            found = _results(y, problem.leaves)
        _assert_same_places(f"{backend}, {where}", found, expected)


def check_stack(where: str, problem: Layer, backends: Sequence[str], within: Within = nullcontext) -> None:
    """Also with a cotangent that is not finite, in a row that is there and in one that is not."""
    exact = problem.with_leaves(torch.float32)
    days = []
    for t in range(STEPS):
        there = problem.present[:, t].nonzero()[:, 0]
        graph = oracle.subgraph((exact.edge_index, exact.weight), there, exact.x.size(0))
        day = oracle.stack_of_day(exact.x[there, t], graph, exact.convs, exact.options["conv_layers"], True)
        days.append(day.new_zeros(exact.x.size(0), day.size(1)).index_copy(0, there, day))
    result = torch.stack(days, 1)
    seeds = torch.randn(result.shape).to(problem.x.dtype)
    stock, day = problem.present.nonzero()[7].tolist()
    seeds[stock, day, 3] = torch.nan
    seeds[~problem.present] = torch.inf
    expected = [result.detach(), *torch.autograd.grad(result, _of_stack(exact), seeds.float())]
    for backend in backends:
        with within():
            y = functional.conv_stack(
                problem.x, problem.graph, problem.convs, **problem.options, activation="none", present=problem.present,
                backend=backend,
            )  # fmt: skip
            found = [y.detach(), *torch.autograd.grad(y, _of_stack(problem), seeds)]
        _assert_same_places(f"{backend}, {where}", found, expected)


def check_without_a_stock(base: Layer, backend: str, dtype: torch.dtype, within: Within = nullcontext) -> None:
    """Nothing reads a parameter or a weight, so that their gradients are zero; the states are kept."""
    base = base._replace(present=torch.zeros_like(base.present))
    for leaf in range(2, len(base.leaves)):
        problem = base.with_leaves(dtype)
        with torch.no_grad():
            problem.leaves[leaf].fill_(torch.inf)
        with within():
            y, *found = _results(problem.run(backend), problem.leaves)
        assert torch.equal(y, problem.h0.unsqueeze(1).expand_as(y))
        for i, gradient in enumerate(found):
            assert i == 1 or not gradient.any(), f"tensor {leaf}: gradient {i}"


def _of_stack(problem: Layer) -> list[Tensor]:
    return [problem.x, *problem.convs, *([] if problem.weight is None else [problem.weight])]


def _results(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [y.detach(), *gradients(y, leaves)]


def _assert_same_places(where: str, found: list[Tensor], expected: list[Tensor]) -> None:
    """Of a 16-bit type, where the numbers are finite: what it rounds to zero, infinity makes NaN."""
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        kinds = (pattern(one), pattern(other))
        if one.dtype in (torch.bfloat16, torch.float16):
            kinds = (kinds[0] == 0, kinds[1] == 0)
        assert torch.equal(*kinds), f"{where}: result {i}"
