"""Problems of sizes at which a CUDA kernel has a way of its own, and how the harness runs any problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hiermt.native import extension
from simt.harness import Simt
from simt.program import compiler
from support.calls import DTYPES, Found, compare, run, tensors_of
from support.present import masks
from support.problems import Maker, Problem, Stack, random_graph

REASON = "needs g++ on x86-64" if compiler() is None else extension.why_not_native("cpu")
needs_harness = pytest.mark.skipif(REASON is not None, reason=str(REASON))

GAT = Stack()
GCN = Stack(2, False)
ONE = Stack(1)
ONE_GCN = Stack(1, False)


LITTLE = {"HIERMT_SIMT_SHARED_BYTES": "16384"}


class Case(NamedTuple):
    """A problem, and what of it is run: which leaves require grad, in which memory layout."""

    problem: Problem
    how: dict[str, Any]

    def __str__(self) -> str:
        return "-".join([str(self.problem), *("constant edges" if k == "wanted" else "strided" for k in self.how)])


def check(
    problem: Problem | Case,
    dtype: torch.dtype = torch.float32,
    environment: dict[str, str] | None = None,
    **how: Any,
) -> Found:
    """Runs the kernels forward and backward, asserted against the twin; forward alone gives the same bits."""
    if isinstance(problem, Case):
        problem, how = problem.problem, {**problem.how, **how}
    with Simt(environment):
        found = compare(problem, dtype, **how)
        alone = run(problem, True, dtype, **{**how, "wanted": ()})
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(found.values, alone.values, strict=True))
    return found


def bits(problem: Problem | Case, environment: dict[str, str] | None = None, tf32: bool = False) -> list[Tensor | None]:
    """Every result of the kernels in float32."""
    problem, how = (problem.problem, problem.how) if isinstance(problem, Case) else (problem, {})
    with Simt(environment, tf32):
        return run(problem, True, **how).tensors()


def launches(problem: Problem | Case, dtype: torch.dtype = torch.float32, **environment: str) -> list[tuple[str, int]]:
    """How many kernels each operator of a call launches: forward alone for a problem, backward too for a case."""
    with Simt(environment) as simt:
        if isinstance(problem, Case):
            run(problem.problem, True, dtype, **problem.how)
        else:
            run(problem, True, dtype, wanted=())
    return simt.calls


def with_dtypes(cases: Sequence[Problem | Case], first: int = 5) -> pytest.MarkDecorator:
    """Every case in float32; the `first` ones, which meet every specialisation, in the other dtypes too."""
    # One case after the other: the twin in float64 serves float32 and float64.
    pairs = [(case, dtype) for i, case in enumerate(cases) for dtype in (DTYPES if i < first else DTYPES[:1])]
    return pytest.mark.parametrize(
        ("case", "dtype"), pairs, ids=[f"{c}-{str(d).removeprefix('torch.')}" for c, d in pairs]
    )


def conv(
    hidden: int,
    *,
    nodes: int = 9,
    edges: int = 30,
    copies: int = 1,
    steps: int = 4,
    channels: int = 13,
    stack: Stack = ONE,
    activation: int = 1,
) -> Problem:
    shape = (copies, steps, channels, hidden)
    problem = Maker(1).conv(random_graph(nodes, edges), shape, stack, activation)
    return problem._replace(label=f"{nodes}x{edges}-{problem.label}")


def layer(
    hidden: int,
    *,
    nodes: int = 9,
    edges: int = 30,
    copies: int = 1,
    steps: int = 4,
    channels: int = 13,
    stack: Stack = GAT,
    sequence: bool = True,
    starts: Sequence[int] | None = None,
    window: int | None = None,
    state: bool = False,
) -> Problem:
    shape = (copies, steps, channels, hidden)
    problem = Maker(1).layer(random_graph(nodes, edges), shape, stack, sequence, starts, window, state)
    return problem._replace(label=f"{nodes}x{edges}-{problem.label}")


def scan(
    hidden: int,
    *,
    nodes: int = 7,
    steps: int = 5,
    channels: int = 13,
    state: bool = False,
    sequence: bool = True,
    convolved: bool = True,
) -> Problem:
    return Maker(1).scan((nodes, steps, channels, hidden), state, sequence, convolved)


def windows(
    hidden: int,
    *,
    starts: Sequence[int] = (9, 0, 2, 2),
    stocks: int = 3,
    days: int = 14,
    steps: int = 4,
    channels: int = 13,
    sequence: bool = True,
    state: bool = False,
    convolved: bool = True,
) -> Problem:
    name = f"{len(starts)}x{(stocks, days, steps, channels, hidden)}"
    return Maker(1).windows(name, (stocks, days, steps, channels, hidden), starts, sequence, state, convolved)


# Scans whose weights do not fit shared memory: in float64 of any GPU, else of one that has little.
without_room = pytest.mark.parametrize(
    ("problem", "dtype", "environment"),
    [
        (make(100 if dtype == torch.float64 else 40), dtype, {} if dtype == torch.float64 else LITTLE)
        for dtype in DTYPES
        for make in (
            lambda hidden: scan(hidden, nodes=3, steps=2),
            lambda hidden: windows(hidden, starts=(3, 0), days=7, stocks=2, channels=3),
        )
    ],
    ids=str,
)


def with_mask(case: Problem | Case, kind: str = "random") -> Case:
    """With a mask of :func:`support.present.masks` over the nodes and steps of x, or over the days of a series."""
    problem, how = (case.problem, case.how) if isinstance(case, Case) else (case, {})
    nodes, steps = problem.arguments[0].shape[:2]
    missing = {"conv_stack": 4, "gated_scan": 5, "tgcn_layer": 7}[problem.op] - len(problem.arguments)
    arguments = (*problem.arguments, *[None] * missing, masks(nodes, steps)[kind])
    return Case(problem._replace(arguments=arguments, label=f"{problem.label}-{kind} absent"), how)


def constant_edges(problem: Problem) -> Case:
    """Without a gradient of the edge weights, the second leaf: the stack's backward has another kernel for these."""
    leaves = [one for one in tensors_of(problem.arguments) if one.is_floating_point()]
    return Case(problem, {"wanted": [i for i in range(len(leaves)) if i != 1]})
