"""What ``hiermt::decision`` owes to torch as an operator: its rules, its compiler, its messages."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hiermt import functional
from hiermt.testing import assert_close
from support.decision_cases import arguments, native


@native
def test_double_backward_is_refused_by_name() -> None:
    args = arguments(4, 3, 2, grad=True)
    logits = functional.heads(args[0], args[1:], backend="native")
    (first,) = torch.autograd.grad(logits[0].sum(), args[0], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"hiermt\.decision.*second derivative"):
        torch.autograd.grad(first.sum(), args[1])


@native
def test_opcheck() -> None:
    from hiermt import ops

    assert ops.ALL == 15
    args = arguments(7, 6, 4, torch.float32, grad=True)
    logits = torch.randn(2, 7, 2)
    torch.library.opcheck(torch.ops.hiermt.decision.default, (*args, 0.5, 15))
    torch.library.opcheck(torch.ops.hiermt.decision.default, (*args, 0.5, 1))
    torch.library.opcheck(torch.ops.hiermt.decision_from_logits.default, (*logits, 0.5, 14))
    backward = (*logits, args[0], *args[1:4], args[5])
    for need in itertools.product([False, True], repeat=2):
        plain = [arg.detach() for arg in backward]
        torch.library.opcheck(torch.ops.hiermt.decision_backward.default, (*plain, *need))


@native
@pytest.mark.parametrize("outputs", range(16))
def test_only_what_was_asked_for(outputs: int) -> None:
    from hiermt import ops

    args = arguments(33, 16, 4)
    everything = ops.decision(*args, 0.5)
    found = ops.decision(*args, 0.5, outputs)
    for bit, index in ((1, 0), (1, 1), (2, 2), (4, 3), (8, 4)):
        if outputs & bit:
            assert torch.equal(found[index], everything[index])
        else:
            assert found[index].numel() == 0


@native
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_break(dynamic: bool) -> None:
    args = arguments(20, 6, 4, torch.float32, grad=True)

    def loss(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        signal, direction, _, predictions, _ = functional.decision(inputs[0], inputs[1:], backend="native")
        return signal.square().sum() + direction.sum(), predictions

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (20, 31):
        inputs = [torch.randn(rows, 6, requires_grad=True), *args[1:]]
        found, expected = compiled(*inputs), loss(*inputs)
        assert_close(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        for a, b in zip(torch.autograd.grad(found[0], inputs), torch.autograd.grad(expected[0], inputs), strict=True):
            assert_close(a, b)


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_computes_in_its_dtype(dtype: torch.dtype) -> None:
    from hiermt import ops

    args = arguments(8, 6, 4, torch.float32, grad=True)
    with torch.autocast("cpu", dtype=dtype):
        direct = ops.decision(*args, 0.5)
        through = functional.decision(args[0], args[1:], backend="native")
    assert all(torch.equal(a, b) for a, b in zip(direct, through, strict=True))
    assert direct[0].dtype == dtype
    grads = torch.autograd.grad(direct[0].float().sum(), args[:3])
    assert [grad.dtype for grad in grads] == [torch.float32] * 3


@native
def test_bad_arguments_name_what_is_wrong() -> None:
    from hiermt import ops

    args = arguments(5, 6, 4)
    cases = {
        "h: expected a shape \\[N, H\\], got \\[5\\]": [args[0][:, 0], *args[1:]],
        "out_weight: expected a shape \\[K, 6\\], got \\[4, 5\\]": [args[0], args[1][:, :5], *args[2:]],
        "out_bias: expected a shape \\[4\\], got \\[3\\]": [*args[:2], args[2][:3], *args[3:]],
        "signal_weight: expected a shape \\[2, 4\\], got \\[3, 4\\]": [*args[:3], torch.zeros(3, 4), *args[4:]],
        "direction_bias: expected dtype Double, got Float": [*args[:6], args[6].float()],
        "h: expected dtype Float, Double, BFloat16 or Half, got Int": [arg.int() for arg in args],
        "h: the CPU kernels take Float, Double and BFloat16, got Half": [arg.half() for arg in args],
    }
    for message, wrong in cases.items():
        with pytest.raises(RuntimeError, match=f"hiermt::decision: {message}"):
            ops.decision(*wrong, 0.5)
    with pytest.raises(RuntimeError, match="direction_logits: expected a shape \\[5, 2\\], got \\[4, 2\\]"):
        ops.decision_from_logits(torch.zeros(5, 2), torch.zeros(4, 2), 0.5)
