"""Every operator on every problem of :mod:`support.problems`: the numbers.

Which bits are equal is in test_contract_bits.py, what torch asks of an operator in test_contract_rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hiermt.native import extension
from hiermt.testing import assert_close
from support import oracles
from support.calls import (
    DTYPES,
    Call,
    Found,
    assert_equal,
    compare,
    cotangents,
    gradients,
    outputs_of,
    prepare,
    run,
    with_grad,
)
from support.contract import PROBLEMS, SMALL, every_variant
from support.graphs import small_graphs
from support.problems import VARIANTS, Edges, Maker, Problem, Stack
from support.properties import given, settings

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)


def dtypes_of(problem: Problem) -> tuple[torch.dtype, ...]:
    """One for the graph, whose results are integers; float16 is of the GPU."""
    return DTYPES[: 1 if problem.op == "graph_prepare" else 4 if torch.cuda.is_available() else 3]


def test_every_operator_has_problems() -> None:
    forward = {name for name in extension.OPERATORS if not name.endswith("_backward")}
    assert {problem.op for problem in PROBLEMS} == forward
    assert {make(1).op for make in VARIANTS.values()} == forward - {"graph_prepare"}


@pytest.mark.hostile("empty", "loops", "dtypes", "unwritten")
@pytest.mark.parametrize(("problem", "dtype"), [(one, dtype) for one in PROBLEMS for dtype in dtypes_of(one)], ids=str)
def test_equals_twin(problem: Problem, dtype: torch.dtype, device: str) -> None:
    """Values and the gradient of every input, against the twin in float64."""
    if device == "cpu" and dtype == torch.float16:
        pytest.skip("the CPU kernels take no float16")
    compare(problem, dtype, device)


@pytest.mark.parametrize("problem", [problem for problem in PROBLEMS if oracles.has(problem)], ids=str)
def test_equals_pyg_or_plain_torch(problem: Problem) -> None:
    oracles.compare(problem)


def small_problems(edges: Edges) -> Iterator[Problem]:
    """The operators that read edges, on a small problem of these."""
    make = Maker()
    yield make.conv(edges, (1, 2, 3, 5), Stack(1), 1)
    yield make.conv(edges, (1, 2, 3, 5), Stack(1, False), 2)
    yield make.layer(edges, (1, 2, 3, 5), Stack(), True)


@settings(max_examples=30, deadline=None)
@given(small_graphs())
def test_equals_pyg_on_any_small_graph(graph: tuple[int, Tensor, Tensor]) -> None:
    """Loops, duplicates and isolated nodes as they come."""
    for problem in small_problems((graph[1], graph[2].float(), graph[0])) if graph[0] else ():
        oracles.compare(problem)


def has_windows(problem: Problem) -> bool:
    return "windows" in problem.label and problem.arguments[-1].numel() > 0 and problem.options["steps"] > 0


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("problem", [p for p in SMALL if has_windows(p)], ids=str)
def test_windows_equal_the_call_on_copies_of_them(problem: Problem, dtype: torch.dtype) -> None:
    """The same bits forward and from the states; gradients of what windows share are sums in another order."""
    shared, copied = prepare(problem, dtype), prepare(problem, dtype)
    starts, steps = problem.arguments[-1], problem.options["steps"]
    series = (0, 1) if problem.op == "gated_scan" and problem.arguments[1] is not None else (0,)
    arguments = list(copied.arguments)
    for i in series:
        arguments[i] = oracles.gathered(arguments[i], starts, steps)
    alone = copied._replace(arguments=(*arguments[:-1], None), options={**problem.options, "steps": 0})
    outputs = [outputs_of(problem.op, call, True) for call in (shared, alone)]
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    if not problem.gradient:
        return
    pairs = zip(
        *(gradients(out, call.leaves) for out, call in zip(outputs, (shared, copied), strict=True)), strict=True
    )
    for one, other in pairs:
        assert_close(one, other, gradient=True, scaled=True)


def test_a_day_of_no_window_counts_for_nothing() -> None:
    problem = Maker().windows("gaps", (3, 40, 5, 4, 16), [0, 12, 30], True)
    x, g, *rest = problem.arguments
    unused = torch.ones(40, dtype=torch.bool)
    for start in (0, 12, 30):
        unused[start : start + 5] = False
    spoilt = x.clone(), g.clone()
    spoilt[0][:, unused], spoilt[1][:, unused] = torch.nan, torch.inf
    found = run(problem._replace(arguments=(*spoilt, *rest)), True)
    assert_equal(found, run(problem, True))
    assert not any(gradient[:, unused].any() for gradient in found.gradients[:2])


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("problem", [p for p in SMALL if p.parts > 1 and p.rows], ids=str)
def test_a_part_alone_and_among_others(problem: Problem, dtype: torch.dtype) -> None:
    """The numbers of a copy, window or row depend on its own inputs alone, whatever lane and task it falls into."""

    def cut(tensor: Tensor, part: slice) -> Tensor:
        return tensor.unflatten(0, (problem.parts, -1))[part].flatten(0, 1)

    whole = run(problem, True, dtype)
    for part in (slice(0, 1), slice(problem.parts // 2, None), slice(problem.parts - 1, None)):
        call = prepare(problem, dtype)
        mine = {id(call.arguments[i]): i for i in problem.rows}
        places = [at for at, leaf in enumerate(call.leaves) if id(leaf) in mine]
        arguments = list(call.arguments)
        for i in problem.rows:
            piece = cut(arguments[i].detach(), part)
            arguments[i] = piece.requires_grad_(arguments[i].requires_grad)
        own = [arguments[mine[id(call.leaves[at])]] for at in places]
        outputs = outputs_of(problem.op, Call(tuple(arguments), call.options, own), True)
        rest = [*whole.values, *whole.exact]
        for got, want in zip(sorted(outputs, key=lambda t: not t.is_floating_point()), rest, strict=True):
            assert torch.equal(got, cut(want, part))
        if own and problem.gradient:
            seeds = [cut(seed, part) for seed in cotangents(whole.values[: len(with_grad(outputs))])]
            for at, gradient in zip(places, gradients(outputs, own, seeds), strict=True):
                assert torch.equal(gradient, cut(whole.gradients[at], part))


@pytest.mark.hostile("rounding")
@every_variant
def test_error_is_at_most_twice_the_twins(variant: str) -> None:
    """In float32 against float64, at about the size that users have: values, the first gradient, all other gradients.

    The error of a gradient of a few elements is a matter of luck, so those of all parameters count as one.
    """

    def errors(found: Found, exact: Found) -> list[float]:
        pairs = [*zip(found.values, exact.values, strict=True), *zip(found.gradients, exact.gradients, strict=True)]
        each = [float((one.double() - other).norm()) for one, other in pairs if one is not None and other is not None]
        first = len(found.values) + 1
        return [*each[:first], sum(error**2 for error in each[first:]) ** 0.5]

    problem = VARIANTS[variant](20)
    exact = run(problem, False, torch.float64)
    ours, theirs = (errors(run(problem, native), exact) for native in (True, False))
    size = max(float(value.double().abs().max()) for value in exact.values)
    for own, twin in zip(ours, theirs, strict=True):
        assert own <= 2 * twin + 2 * size * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("problem", [problem for problem in SMALL if problem.gradient], ids=str)
def test_gradcheck(problem: Problem) -> None:
    """Against finite differences, in one random direction."""
    call = prepare(problem, torch.float64)
    outputs = outputs_of(problem.op, call, True)
    chosen = [i for i, one in enumerate(outputs) if one.requires_grad and one.numel()]

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        found = outputs_of(problem.op, _with_leaves(call, leaves), True)
        return tuple(found[i] for i in chosen)

    if chosen:
        assert torch.autograd.gradcheck(function, call.leaves, fast_mode=True)


def _with_leaves(call: Call, leaves: tuple[Tensor, ...]) -> Call:
    """The call on other leaves."""
    places = {id(leaf): i for i, leaf in enumerate(call.leaves)}

    def replace(value: Any) -> Any:
        if isinstance(value, list):
            return [replace(one) for one in value]
        return leaves[places[id(value)]] if id(value) in places else value

    return call._replace(arguments=tuple(replace(value) for value in call.arguments), leaves=list(leaves))
