"""What ``hiermt::decision`` owes to torch as an operator: its rules, its compiler, its messages."""

from __future__ import annotations

import pytest
import torch

from support.decision_cases import arguments, native


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
