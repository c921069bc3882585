"""What torch asks of every operator: schema, fake, autograd and autocast rules, compilation, what a backward keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hiermt.native import extension
from hiermt.testing import assert_close
from support.calls import (
    Call,
    Found,
    assert_equal,
    cotangents,
    detached,
    gradients,
    outputs_of,
    prepare,
    recorded,
    tensors_of,
    with_grad,
)
from support.contract import SMALL, differentiable, every_variant
from support.problems import VARIANTS, Problem

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)


@every_variant
def test_opcheck(variant: str) -> None:
    """The schema, the fake rule and the autograd rule of the operator; the first two of its backward."""
    problem = VARIANTS[variant](1)

    def both() -> None:
        call = prepare(problem)
        outputs = outputs_of(problem.op, call, True)
        gradients(outputs, call.leaves)

    calls = recorded(both)
    assert {name for name, *_ in calls} >= {problem.op}
    for name, arguments, keywords in calls:
        torch.library.opcheck(getattr(torch.ops.hiermt, name).default, detached(arguments), detached(keywords))


@pytest.mark.parametrize("problem", [p for p in SMALL if p.op == "graph_prepare"], ids=str)
def test_opcheck_of_a_graph(problem: Problem) -> None:
    torch.library.opcheck(torch.ops.hiermt.graph_prepare.default, problem.arguments)


@differentiable
def test_many_cotangents_at_once(variant: str) -> None:
    problem = VARIANTS[variant](1)
    call = prepare(problem, torch.float64)
    outputs = with_grad(outputs_of(problem.op, call, True))
    batches = [torch.randn(3, *one.shape, dtype=torch.float64) for one in outputs]
    found = torch.autograd.grad(outputs, call.leaves, batches, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        expected = gradients(outputs, call.leaves, [batch[k] for batch in batches], again=True)
        for one, other in zip(found, expected, strict=True):
            assert_close(one[k], other, gradient=True)


@pytest.mark.hostile("double-backward")
@differentiable
def test_double_backward_is_refused_by_name(variant: str) -> None:
    problem = VARIANTS[variant](1)
    call = prepare(problem)
    outputs = with_grad(outputs_of(problem.op, call, True))
    grads = torch.autograd.grad(outputs, call.leaves, cotangents(outputs), create_graph=True)
    with pytest.raises(NotImplementedError, match=problem.op):
        torch.autograd.grad(sum(grad.sum() for grad in grads), call.leaves)


@pytest.mark.hostile("dtypes")
@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("decision_from")])
def test_autocast(variant: str) -> None:
    """The operator computes in the dtype of autocast, the loss in float32; gradients have the dtype of the inputs."""
    problem = VARIANTS[variant](2)
    call = prepare(problem)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = outputs_of(problem.op, call, True)
    if problem.op != "multitask_loss":
        expected = outputs_of(problem.op, prepare(problem, torch.bfloat16), True)
        assert outputs[0].dtype == torch.bfloat16
        assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))
    else:
        assert outputs[0].dtype == torch.float32
    for gradient in gradients(outputs, call.leaves) if problem.gradient else ():
        assert gradient.dtype == torch.float32


@pytest.mark.hostile("compilers")
@every_variant
def test_compiles_without_a_graph_break_for_any_size(variant: str) -> None:
    torch._dynamo.reset()
    problem = VARIANTS[variant](2)

    def function(arguments: Any, options: Any) -> list[Tensor]:
        found = outputs_of(problem.op, Call(arguments, options, []), True)
        return [one * 2 for one in found]

    compiled: Callable[..., list[Tensor]] = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (2, 3):
        pairs = []
        for way in (compiled, function):
            call = prepare(VARIANTS[variant](count))
            outputs = way(call.arguments, call.options)
            pairs.append(Found(outputs, [], gradients(outputs, call.leaves)))
        assert_equal(*pairs)


@pytest.mark.parametrize(("variant", "kept"), [("gated_scan, last", 4), ("tgcn_layer", 5), ("tgcn_layer, last", 5)])
def test_what_is_kept_for_the_backward(variant: str, kept: int) -> None:
    """So many states a node and step: h, three gates and, in a layer, g; nothing at all without a gradient."""
    problem = VARIANTS[variant](2)
    call = prepare(problem)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = outputs_of(problem.op, call, True)[0]
    for tensor in tensors_of(call.arguments):
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    nodes, steps, hidden = call.arguments[0].size(0), call.arguments[0].size(1), out.size(-1)
    assert sum(saved.values()) == kept * nodes * steps * hidden * 4
    with torch.no_grad():
        ((_, arguments, options),) = recorded(lambda: outputs_of(problem.op, call, True))
        _, *others = getattr(torch.ops.hiermt, problem.op)(*arguments, **options)
    assert all(one.numel() == 0 for one in others)
