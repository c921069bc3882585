"""Numbers that are not finite in a call with a mask: nothing comes from the stocks that are absent.

The oracle is PyG on the subgraph of each day, in the same dtype. It computes nothing for an absent stock, where a
product with a zero would be NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import functional
from support import present as oracle
from support.edge_numbers import pattern
from support.present_layer import BACKENDS, STEPS, Layer, gradients, layer

NUMBERS = [float("inf"), float("-inf"), float("nan")]
pytestmark = pytest.mark.hostile("absent", "special-numbers")


def spoilt(base: Layer) -> Iterator[tuple[str, Layer]]:
    """Each number in a tensor of the call in turn, in its first, last or middle element; of x where it is read."""
    for leaf in range(len(base.leaves)):
        for i, number in enumerate(NUMBERS):
            problem = base.with_leaves(torch.float32)
            tensor = problem.leaves[leaf]
            at = (0, tensor.numel() // 2, tensor.numel() - 1)[(leaf + i) % 3]
            if leaf == 0:
                stock, day = problem.present.nonzero()[at % int(problem.present.sum())].tolist()
                at = (stock * tensor.size(1) + day) * tensor.size(2)
            with torch.no_grad():
                tensor.view(-1)[at] = number
            yield f"{number} in tensor {leaf}", problem


def assert_same_places(where: str, found: list[Tensor], expected: list[Tensor]) -> None:
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(pattern(one), pattern(other)), f"{where}: result {i}"


def results(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [y.detach(), *gradients(y, leaves)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("conv_layers", "between", "hidden"), [(1, True, 16), (2, False, 5), (2, True, 33)])
@pytest.mark.parametrize("kind", ["edge", "bare", "gcn"])
def test_a_layer(kind: str, conv_layers: int, between: bool, hidden: int, backend: str) -> None:
    base = layer(kind, conv_layers, between, hidden=hidden)
    for where, problem in spoilt(base):
        found, expected = problem.run(backend), problem.expected()
        assert_same_places(where, results(found, problem.leaves), results(expected, problem.leaves))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["edge", "bare", "gcn"])
def test_windows(kind: str, backend: str) -> None:
    starts, steps = torch.tensor([2, 0, 3, 2]), 4
    base = layer(kind, 1, hidden=16)
    base = base._replace(h0=torch.randn(len(starts) * base.x.size(0), 16))
    for where, problem in spoilt(base):
        windows = hiermt.Windows(problem.x, starts, steps, problem.present)
        found = functional.tgcn_layer(
            windows, problem.graph, problem.convs, problem.gates, h0=problem.h0, **problem.options, backend=backend
        )
        x, present = (
            torch.cat([one[:, start : start + steps] for start in starts.tolist()])
            for one in (problem.x, problem.present)
        )
        expected = problem.expected(x, present, problem.h0)
        assert_same_places(where, results(found, problem.leaves), results(expected, problem.leaves))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["edge", "bare", "gcn"])
def test_a_stack(kind: str, backend: str) -> None:
    """Also with a cotangent that is not finite, in a row that is there and in one that is not."""
    base = layer(kind, 2, hidden=8)
    for where, problem in spoilt(base):
        leaves = [problem.x, *problem.convs, *([] if problem.weight is None else [problem.weight])]
        found = functional.conv_stack(
            problem.x, problem.graph, problem.convs, **problem.options, activation="none", present=problem.present,
            backend=backend,
        )  # fmt: skip
        days = []
        for t in range(STEPS):
            there = problem.present[:, t].nonzero()[:, 0]
            graph = oracle.subgraph((problem.edge_index, problem.weight), there, problem.x.size(0))
            day = oracle.stack_of_day(problem.x[there, t], graph, problem.convs, 2, True)
            days.append(found.new_zeros(found.size(0), 8).index_copy(0, there, day))
        expected = torch.stack(days, 1)
        assert_same_places(where, [found.detach()], [expected.detach()])
        seeds = torch.randn(found.shape)
        seeds[problem.present.nonzero()[7].tolist()[0], problem.present.nonzero()[7].tolist()[1], 3] = torch.nan
        seeds[~problem.present] = torch.inf
        pairs = [torch.autograd.grad(y, leaves, seeds) for y in (found, expected)]
        assert_same_places(where, *(list(one) for one in pairs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["edge", "bare", "gcn"])
def test_a_layer_without_a_stock(kind: str, backend: str) -> None:
    """Nothing reads a parameter or a weight, so that their gradients are zero; the states are kept."""
    base = layer(kind, 2, hidden=8)
    base = base._replace(present=torch.zeros_like(base.present))
    for leaf in range(2, len(base.leaves)):
        problem = base.with_leaves(torch.float32)
        with torch.no_grad():
            problem.leaves[leaf].fill_(torch.inf)
        y = problem.run(backend)
        assert torch.equal(y, problem.h0.unsqueeze(1).expand_as(y))
        for i, found in enumerate(gradients(y, problem.leaves)):
            assert i == 1 or not found.any(), f"tensor {leaf}: gradient {i}"
