"""``hiermt::decision`` and ``hiermt::decision_from_logits`` against stock PyTorch, on every backend and dtype."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt import functional, reference
from hiermt.testing import assert_close
from support.decision_cases import DTYPES, arguments, native
from support.properties import given, settings, st

SIZES = [
    (0, 16, 16),
    (1, 16, 16),
    (3, 1, 1),
    (17, 5, 3),
    (100, 16, 16),
    (600, 37, 9),
    (65, 128, 64),
    (4, 8, 0),
    (4, 0, 3),
]


def by_hand(signal_logits: Tensor, direction_logits: Tensor, threshold: float) -> tuple[list[int], list[float]]:
    """The decision a row at a time, in Python floats: the oracle shares no line with what it checks."""

    def softmax(a: float, b: float) -> tuple[float, float]:
        p = 1 / (1 + math.exp(-abs(a - b)))
        return (p, 1 - p) if a > b else (1 - p, p)

    predictions, confidences = [], []
    for (noise, signal), (down, up) in zip(signal_logits.tolist(), direction_logits.tolist(), strict=True):
        p_noise, p_signal = softmax(noise, signal)
        p_down, p_up = softmax(down, up)
        if p_signal > threshold:
            predictions.append(2 if p_up > p_down else 0)
            confidences.append(max(p_down, p_up))
        else:
            predictions.append(1)
            confidences.append(max(p_noise, p_signal))
    return predictions, confidences


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_decision_matches_plain_linears(backend: str, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    args = arguments(*size, dtype)
    found = functional.decision(args[0], args[1:], 0.6, backend=backend)
    exact = [arg.double() for arg in args]
    features = F.linear(exact[0], exact[1], exact[2])
    signal, direction = F.linear(features, *exact[3:5]), F.linear(features, *exact[5:7])
    # bfloat16 logits are sums of up to H * K terms, each of the size of the result.
    scale = max(1.0, float(signal.abs().max()) if signal.numel() else 1.0)
    assert_close(found[0] / scale, signal / scale)
    assert_close(found[1] / scale, direction / scale)
    assert [tuple(t.shape) for t in found] == [(size[0], 2), (size[0], 2), (size[0], 4), (size[0],), (size[0],)]
    assert [t.dtype for t in found] == [dtype, dtype, dtype, torch.int64, dtype]
    # From its own logits the rest must follow.
    rest = reference.decision_from_logits(found[0], found[1], 0.6)
    assert torch.equal(found[3], rest[1])
    assert_close(found[2], rest[0])
    assert_close(found[4], rest[2])


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_decision_by_hand(backend: str, threshold: float) -> None:
    signal, direction = torch.randn(200, 2, dtype=torch.float64), 3 * torch.randn(200, 2, dtype=torch.float64)
    probabilities, predictions, confidences = functional.decision_from_logits(
        signal, direction, threshold, backend=backend
    )
    expected, confidence = by_hand(signal, direction, threshold)
    assert predictions.tolist() == expected
    assert confidences.tolist() == pytest.approx(confidence)
    assert_close(probabilities[:, :2].sum(-1), torch.ones(200, dtype=torch.float64))
    assert set(expected) <= {0, 1, 2}
    assert len(set(expected)) == 3 or threshold in (0.0, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_equals_argmax_and_ties_are_noise_and_down(backend: str, dtype: torch.dtype) -> None:
    grid = torch.tensor(list(itertools.product([-1.0, 0.0, 0.5, 80.0], repeat=4)), dtype=dtype)
    signal, direction = grid[:, :2], grid[:, 2:]
    _, predictions, _ = functional.decision_from_logits(signal, direction, 0.5, backend=backend)
    expected = torch.where(signal.argmax(-1) == 1, 2 * direction.argmax(-1), 1)
    assert torch.equal(predictions, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_as_torch(backend: str, dtype: torch.dtype) -> None:
    special = [math.nan, math.inf, -math.inf, 0.0, 200.0, -3e38]
    grid = torch.tensor(list(itertools.product(special, repeat=4)), dtype=dtype)
    signal, direction = grid[:, :2], grid[:, 2:]
    probabilities, predictions, confidences = functional.decision_from_logits(signal, direction, 0.5, backend=backend)
    p_signal, p_direction = torch.softmax(signal, -1), torch.softmax(direction, -1)
    is_signal = p_signal.argmax(-1).eq(1) & ~p_signal.isnan().any(-1)
    assert_close(probabilities, torch.cat([p_signal, p_direction], -1))
    down_or_up = torch.where(p_direction.isnan().any(-1), 0, 2 * p_direction.argmax(-1))
    assert torch.equal(predictions, torch.where(is_signal, down_or_up, 1))
    assert_close(confidences, torch.where(is_signal, p_direction.amax(-1), p_signal.amax(-1)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_input_stays_in_its_row(backend: str, bad: float) -> None:
    args = arguments(40, 16, 8)
    clean = functional.decision(args[0], args[1:], backend=backend)
    args[0][7, 3] = bad
    found = functional.decision(args[0], args[1:], backend=backend)
    others = torch.arange(40) != 7
    for a, b in zip(found, clean, strict=True):
        assert torch.equal(a[others], b[others])
    assert not found[0][7].isfinite().any()
    assert found[3][7] == 1
    assert found[4][7].isnan()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t().contiguous().t(),
    "sliced columns": lambda t: torch.cat([t, t], 1)[:, : t.size(1)],
    "every third row": lambda t: t.repeat_interleave(3, 0)[::3],
    "storage offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t),
    "last step": lambda t: torch.stack([t + 1, t], 1)[:, -1],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_give_the_same_numbers(backend: str, layout: Callable[[Tensor], Tensor]) -> None:
    args = arguments(37, 16, 5, torch.float32)
    moved = [layout(arg) if arg.dim() == 2 else arg for arg in args]
    assert all(torch.equal(a, b) for a, b in zip(args, moved, strict=True))
    signal, direction = args[0][:, :2].contiguous(), args[0][:, 2:4].contiguous()
    pairs = [
        (functional.decision(inputs[0], inputs[1:], backend=backend) for inputs in (moved, args)),
        (
            functional.decision_from_logits(change(signal), change(direction), backend=backend)
            for change in (layout, Tensor.clone)
        ),
    ]
    for found, expected in pairs:
        for a, b in zip(found, expected, strict=True):
            # Stock linears may choose another order of summation for another layout.
            assert torch.equal(a, b) if backend == "native" else torch.allclose(a.float(), b.float(), atol=1e-5)


def test_decision_from_logits_keeps_leading_dimensions(backend: str) -> None:
    signal, direction = torch.randn(2, 3, 5, 2), torch.randn(2, 3, 5, 2)
    shaped = functional.decision_from_logits(signal, direction, backend=backend)
    flat = functional.decision_from_logits(signal.view(-1, 2), direction.view(-1, 2), backend=backend)
    assert [tuple(t.shape) for t in shaped] == [(2, 3, 5, 4), (2, 3, 5), (2, 3, 5)]
    assert all(torch.equal(a.flatten(0, 2), b) for a, b in zip(shaped, flat, strict=True))


def test_only_the_logits_carry_gradients(backend: str) -> None:
    args = arguments(5, 4, 3, grad=True)
    found = functional.decision(args[0], args[1:], backend=backend)
    assert [t.requires_grad for t in found] == [True, True, False, False, False]


@pytest.mark.parametrize("size", [(0, 3, 2), (1, 1, 1), (9, 5, 4), (40, 17, 3)])
def test_gradcheck(backend: str, size: tuple[int, int, int]) -> None:
    args = arguments(*size, grad=True)

    def logits(*inputs: Tensor) -> tuple[Tensor, ...]:
        return functional.heads(inputs[0], inputs[1:], backend=backend)

    torch.autograd.gradcheck(logits, args)
    torch.autograd.gradcheck(lambda *inputs: logits(*inputs)[1], args)


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(100, 16, 16), (1500, 37, 9)])
def test_gradients_match_the_twin(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    args = arguments(*size, dtype)
    cotangents = torch.randn(2, size[0], 2).to(dtype)
    gradients = []
    for kind, inputs in (("native", args), ("reference", [arg.double() for arg in args])):
        inputs = [arg.detach().requires_grad_() for arg in inputs]
        logits = functional.heads(inputs[0], inputs[1:], backend=kind)
        gradients.append(torch.autograd.grad(logits, inputs, list(cotangents.to(inputs[0].dtype))))
    for found, exact in zip(*gradients, strict=True):
        assert found.dtype == dtype
        assert_close(found, exact, gradient=True, scaled=True)


@native
@pytest.mark.parametrize("which", range(7))
def test_gradient_of_one_argument_alone(which: int) -> None:
    args = arguments(20, 6, 4)
    args[which].requires_grad_()
    found, expected = (
        torch.autograd.grad(functional.heads(args[0], args[1:], backend=kind)[1].square().sum(), args[which])[0]
        if which not in (3, 4)
        else torch.autograd.grad(functional.heads(args[0], args[1:], backend=kind)[0].square().sum(), args[which])[0]
        for kind in ("native", "reference")
    )
    assert_close(found, expected)


@native
def test_incoming_gradients_of_any_stride() -> None:
    args = arguments(12, 6, 4, grad=True)
    signal, direction = functional.heads(args[0], args[1:], backend="native")
    strided = [torch.ones((), dtype=torch.float64).expand(12, 2), torch.randn(2, 12, dtype=torch.float64).t()]
    found = torch.autograd.grad([signal, direction], args, strided, retain_graph=True)
    expected = torch.autograd.grad([signal, direction], args, [grad.contiguous() for grad in strided])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@native
def test_thread_count_changes_no_bit() -> None:
    args = arguments(5000, 16, 16, torch.float32, grad=True)

    def run() -> list[Tensor]:
        found = functional.decision(args[0], args[1:], backend="native")
        return [*found, *torch.autograd.grad(found[0].sin().sum() + found[1].cos().sum(), args)]

    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            runs.append(run())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


@native
def test_error_against_float64_is_at_most_twice_that_of_plain_torch() -> None:
    args = arguments(4000, 64, 64, torch.float32)
    exact = functional.heads(args[0].double(), [arg.double() for arg in args[1:]], backend="reference")
    errors = {
        kind: max(
            float((a.double() - b).abs().max())
            for a, b in zip(functional.heads(args[0], args[1:], backend=kind), exact, strict=True)
        )
        for kind in ("native", "reference")
    }
    assert errors["native"] <= 2 * errors["reference"]


@native
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(1, 40),
    st.integers(1, 6),
    st.floats(0, 1),
    st.sampled_from(DTYPES),
    st.integers(0, 2**31),
)
def test_any_size(n: int, h: int, k: int, threshold: float, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    args = arguments(n, h, k, dtype)
    found = functional.decision(args[0], args[1:], threshold, backend="native")
    rest = reference.decision_from_logits(found[0], found[1], threshold)
    assert torch.equal(found[3], rest[1])
    assert_close(found[2], rest[0])
    assert_close(found[4], rest[2])


@native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree(isa: str) -> None:
    script = f"""
import torch
from hiermt import functional, reference
from hiermt.native import extension
build = extension.native_status().build
if build["cpu_isa"] != "{isa}":
    raise SystemExit(77)
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    args = [torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_()
            for s in ((333, 21), (7, 21), (7,), (2, 7), (2,), (2, 7), (2,))]
    found = functional.decision(args[0], args[1:], backend="native")
    rest = reference.decision_from_logits(found[0], found[1], 0.5)
    assert torch.equal(found[3], rest[1])
    torch.testing.assert_close(found[2], rest[0])
    grads = torch.autograd.grad(found[0].sum() + found[1].square().sum(), args)
    twin = functional.decision(args[0], args[1:], backend="reference")
    expected = torch.autograd.grad(twin[0].sum() + twin[1].square().sum(), args)
    loose = dict(rtol=0.1, atol=20.0) if dtype == torch.bfloat16 else dict(rtol=1e-4, atol=1e-2)
    for a, b in zip(grads, expected):
        torch.testing.assert_close(a, b, **loose)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "HIERMT_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"{isa} is not in this build or on this machine")
    assert done.returncode == 0, done.stderr
