"""A layer and the decision of its last state: one operator computes what two do, and two run where a gradient is."""

from __future__ import annotations

import pytest
import torch

from hiermt.native import extension
from support.calls import DTYPES, gradients, prepare, recorded, tensors_of
from support.contract import PROBLEMS
from support.problems import VARIANTS, Problem

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from hiermt import ops
from support import layer_decision

MINE = [problem for problem in PROBLEMS if problem.op == layer_decision.OPERATOR]
every_way = pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith(layer_decision.OPERATOR)])


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("problem", MINE, ids=str)
def test_the_bits_of_two_operators(problem: Problem, dtype: torch.dtype) -> None:
    layer_decision.check(problem, dtype)


@every_way
def test_every_threshold(name: str) -> None:
    problem = VARIANTS[name](2)
    for threshold in (0.0, 0.25, 0.5, 0.9, 1.0):
        layer_decision.check(problem._replace(options={**problem.options, "threshold": threshold}), torch.float32)


@every_way
@pytest.mark.parametrize("tensor", [0, 6, 10, -1])
def test_numbers_that_are_not_finite(name: str, tensor: int) -> None:
    """Of x, of a convolution and of a head."""
    for number in (torch.nan, torch.inf, -torch.inf):
        problem = VARIANTS[name](2)
        call = prepare(problem)
        call.leaves[tensor].view(-1)[1] = number
        found = layer_decision.in_one(call)
        for one, other in zip(found, layer_decision.in_two(call), strict=True):
            assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))


@every_way
def test_a_gradient_takes_two_operators(name: str) -> None:
    problem = VARIANTS[name](2)
    expected = ops.tgcn_layer_decision(*prepare(problem).arguments, **problem.options)
    wanted = problem._replace(gradient=True)
    call, other = prepare(wanted), prepare(wanted)
    found: list[torch.Tensor] = []
    calls = recorded(lambda: found.extend(layer_decision.in_one(call)))
    assert [name for name, *_ in calls] == ["tgcn_layer", "decision"]
    assert all(torch.equal(one, truth) for one, truth in zip(found, expected, strict=True))
    pairs = zip(gradients(found, call.leaves), gradients(layer_decision.in_two(other), other.leaves), strict=True)
    assert all(torch.equal(one, truth) for one, truth in pairs)
    with torch.no_grad():
        calls = recorded(lambda: layer_decision.in_one(call))
    assert [name for name, *_ in calls] == [layer_decision.OPERATOR]


def test_the_operator_itself_has_no_gradient() -> None:
    problem = VARIANTS[layer_decision.OPERATOR](1)
    with torch.no_grad():
        ((_, arguments, options),) = recorded(
            lambda: ops.tgcn_layer_decision(*prepare(problem).arguments, **problem.options)
        )
    for one in tensors_of(arguments):
        if one.is_floating_point():
            one.requires_grad_()
    signal, *_ = torch.ops.hiermt.tgcn_layer_decision(*arguments, **options)
    with pytest.raises(RuntimeError, match="hiermt::tgcn_layer_decision has no gradient"):
        signal.sum().backward()


@every_way
def test_logits_alone(name: str) -> None:
    call = prepare(VARIANTS[name](2))
    options = {key: value for key, value in call.options.items() if key != "threshold"}
    found = ops.tgcn_layer_logits(*call.arguments, **options)
    expected = layer_decision.in_two(call)[:2]
    assert len(found) == 2 and all(torch.equal(one, truth) for one, truth in zip(found, expected, strict=True))
