"""``hiermt::decision`` and ``hiermt::decision_from_logits`` against stock PyTorch, on every backend and dtype."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hiermt import functional, reference
from hiermt.testing import assert_close
from support.decision_cases import DTYPES, arguments, native
from support.properties import given, settings, st


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
