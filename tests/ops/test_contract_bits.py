"""Every operator gives the same bits whatever the memory of its inputs, the threads and the gradients asked for."""

from __future__ import annotations

import pytest
import torch

from hiermt.native import extension
from support.calls import (
    DTYPES,
    LAYOUTS,
    SHARED,
    Found,
    assert_equal,
    cotangents,
    gradients,
    outputs_of,
    prepare,
    run,
)
from support.contract import differentiable, every_problem, every_variant
from support.problems import VARIANTS, Problem

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

THREADS = (1, 2, 3, 5, 8)


@pytest.mark.hostile("strides")
@every_problem
def test_any_layout_of_the_inputs_gives_the_same_bits(problem: Problem) -> None:
    expected = run(problem, True)
    for name, layout in LAYOUTS.items():
        assert_equal(run(problem, True, layout=layout), expected, name)


@pytest.mark.parametrize("layout", SHARED)
@every_variant
def test_inputs_whose_elements_share_memory(variant: str, layout: str) -> None:
    problem = VARIANTS[variant](2)
    found = []
    for change in (SHARED[layout], lambda t: SHARED[layout](t).contiguous()):
        torch.manual_seed(1)
        arguments = problem.arguments
        first = change(arguments[0]).detach()
        shared = first.requires_grad_(problem.gradient)
        call = prepare(problem)
        call.leaves[0] = shared
        call = call._replace(arguments=(shared, *call.arguments[1:]))
        outputs = outputs_of(problem.op, call, True)
        found.append(Found(outputs, [], gradients(outputs, call.leaves)))
    assert_equal(*found)


@pytest.mark.hostile("strides")
@differentiable
def test_any_layout_of_the_cotangents_gives_the_same_bits(variant: str) -> None:
    problem = VARIANTS[variant](2)
    call = prepare(problem)
    outputs = [one for one in outputs_of(problem.op, call, True) if one.requires_grad]
    dense = cotangents(outputs)
    for change in (*LAYOUTS.values(), lambda t: torch.ones(()).expand(t.shape)):
        seeds = [change(seed) if seed.dim() else seed for seed in dense]
        found = gradients(outputs, call.leaves, seeds, again=True)
        expected = gradients(outputs, call.leaves, [seed.contiguous() for seed in seeds], again=True)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.hostile("determinism")
@every_problem
@pytest.mark.usefixtures("threads")
def test_the_same_bits_on_any_number_of_threads(problem: Problem) -> None:
    torch.set_num_threads(1)
    expected = run(problem, True)
    for count in THREADS[1:]:
        torch.set_num_threads(count)
        assert_equal(run(problem, True), expected)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@every_variant
@pytest.mark.usefixtures("threads")
def test_the_same_bits_of_many_tasks(variant: str, dtype: torch.dtype) -> None:
    problem = VARIANTS[variant](40)
    torch.set_num_threads(1)
    expected = run(problem, True, dtype)
    for count in (*THREADS, 2, 2, 2):
        torch.set_num_threads(count)
        assert_equal(run(problem, True, dtype), expected)


@pytest.mark.hostile("determinism", "streams")
@every_variant
def test_twenty_runs_on_a_stream_give_the_same_bits(variant: str, device: str) -> None:
    expected = run(VARIANTS[variant](9), True, device=device)
    for _ in range(19):
        assert_equal(run(VARIANTS[variant](9), True, device=device), expected)


@every_variant
def test_any_subset_of_inputs_may_require_grad(variant: str) -> None:
    problem = VARIANTS[variant](2)
    every = run(problem, True)
    count = len(every.gradients)
    alone, all_but_one = [[i] for i in range(count)], [[k for k in range(count) if k != i] for i in range(0, count, 3)]
    for wanted in (*alone, *all_but_one, []):
        found = run(problem, True, wanted=wanted)
        for i, (gradient, full) in enumerate(zip(found.gradients, every.gradients, strict=True)):
            assert gradient is None if i not in wanted or full is None else torch.equal(gradient, full)
        assert all(torch.equal(one, other) for one, other in zip(found.values, every.values, strict=True))
