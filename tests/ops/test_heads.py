"""Decision and loss on values that a table of sizes does not have: ties, NaN, infinities, masks, no rows, no class."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hiermt import functional
from hiermt.native import extension
from hiermt.testing import assert_close
from support.problems import Maker

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
needs_native = pytest.mark.skipif(extension.why_not_native("cpu") is not None, reason="no native operators")


def grid_of(values: list[float], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Signal and direction logits of every combination of the values."""
    grid = torch.tensor(list(itertools.product(values, repeat=4)), dtype=dtype)
    return grid[:, :2], grid[:, 2:]


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_equals_argmax_and_ties_are_noise_and_down(backend: str, dtype: torch.dtype) -> None:
    signal, direction = grid_of([-1.0, 0.0, 0.5, 80.0], dtype)
    _, predictions, _ = functional.decision_from_logits(signal, direction, 0.5, backend=backend)
    assert torch.equal(predictions, torch.where(signal.argmax(-1) == 1, 2 * direction.argmax(-1), 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_as_torch(backend: str, dtype: torch.dtype) -> None:
    signal, direction = grid_of([math.nan, math.inf, -math.inf, 0.0, 200.0, -3e38], dtype)
    probabilities, predictions, confidences = functional.decision_from_logits(signal, direction, 0.5, backend=backend)
    p_signal, p_direction = torch.softmax(signal, -1), torch.softmax(direction, -1)
    is_signal = p_signal.argmax(-1).eq(1) & ~p_signal.isnan().any(-1)
    assert_close(probabilities, torch.cat([p_signal, p_direction], -1))
    down_or_up = torch.where(p_direction.isnan().any(-1), 0, 2 * p_direction.argmax(-1))
    assert torch.equal(predictions, torch.where(is_signal, down_or_up, 1))
    assert_close(confidences, torch.where(is_signal, p_direction.amax(-1), p_signal.amax(-1)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_input_stays_in_its_row(backend: str, bad: float) -> None:
    h, *params = Maker().heads(40, 16, 8).arguments
    clean = functional.decision(h, params, backend=backend)
    h[7, 3] = bad
    found = functional.decision(h, params, backend=backend)
    others = torch.arange(40) != 7
    assert all(torch.equal(a[others], b[others]) for a, b in zip(found, clean, strict=True))
    assert not found[0][7].isfinite().any() and found[3][7] == 1 and found[4][7].isnan()


def test_decision_from_logits_keeps_leading_dimensions(backend: str) -> None:
    signal, direction = torch.randn(2, 3, 5, 2), torch.randn(2, 3, 5, 2)
    shaped = functional.decision_from_logits(signal, direction, backend=backend)
    flat = functional.decision_from_logits(signal.view(-1, 2), direction.view(-1, 2), backend=backend)
    assert [tuple(t.shape) for t in shaped] == [(2, 3, 5, 4), (2, 3, 5), (2, 3, 5)]
    assert all(torch.equal(a.flatten(0, 2), b) for a, b in zip(shaped, flat, strict=True))


def test_only_the_logits_carry_gradients(backend: str) -> None:
    h, *params = (one.requires_grad_() for one in Maker().heads(5, 4, 3).arguments)
    found = functional.decision(h, params, backend=backend)
    assert [t.requires_grad for t in found] == [True, True, False, False, False]


@needs_native
def test_only_the_outputs_asked_for() -> None:
    from hiermt import ops

    arguments = Maker().heads(33, 16, 4).arguments
    everything = ops.decision(*arguments, 0.5)
    for wanted in range(16):
        found = ops.decision(*arguments, 0.5, wanted)
        for bit, i in ((1, 0), (1, 1), (2, 2), (4, 3), (8, 4)):
            assert torch.equal(found[i], everything[i]) if wanted & bit else found[i].numel() == 0


Arguments = tuple[Tensor, ...]


def problem(rows: int, dtype: torch.dtype = torch.float64) -> Arguments:
    """Logits of both heads, targets, and the mask of the signals."""
    signal, direction, targets, directions, *_ = Maker().loss(rows, "plain", False).arguments
    return signal.to(dtype), direction.to(dtype), targets, directions, targets == 1


def losses(args: Arguments, mask: Tensor | None, backend: str) -> list[Tensor]:
    """The three losses, and the gradients of the total."""
    logits = [tensor.detach().clone().requires_grad_() for tensor in args[:2]]
    found = functional.multitask_loss(*logits, args[2], args[3], mask, 0.7, backend=backend)
    return [*(loss.detach() for loss in found), *torch.autograd.grad(found[0], logits)]


def test_no_signal_gives_zero(backend: str) -> None:
    _, _, loss, _, gradient = losses(problem(40), torch.zeros(40, dtype=torch.bool), backend)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_masked_rows_never_spread(backend: str, garbage: float) -> None:
    args = problem(100)
    mask = args[4]
    clean = losses(args, mask, backend)
    args[1][~mask], args[3][~mask] = garbage, -7
    dirty = losses(args, mask, backend)
    assert all(torch.equal(one, other) for one, other in zip(clean, dirty, strict=True))
    assert not dirty[4][~mask].any()


@pytest.mark.hostile("special-numbers")
@needs_native
@pytest.mark.parametrize("pair", [(80.0, -80.0), (1e30, -1e30), (math.inf, 0.0), (-math.inf, 0.0)])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_saturated_logits(pair: tuple[float, float], dtype: torch.dtype) -> None:
    logits = torch.tensor([pair, (0.1, 0.2)], dtype=dtype)
    for target in (0, 1):
        targets = torch.tensor([target, 0])
        found, expected = (losses((logits, logits, targets, targets), None, one) for one in ("native", "reference"))
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)


@needs_native
def test_nan_propagates() -> None:
    args = problem(20)
    args[0][3, 0] = math.nan
    total, of_signal, of_direction, gradient, _ = losses(args, args[4], "native")
    assert total.isnan() and of_signal.isnan() and of_direction.isfinite()
    assert gradient[3].isnan().all() and gradient[:3].isfinite().all()


def test_autocast_computes_the_loss_in_float32(backend: str) -> None:
    signal, direction, targets, directions, mask = problem(64, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = functional.multitask_loss(signal, direction, targets, directions, mask, backend=backend)[0]
    assert loss.dtype == torch.float32


@pytest.mark.hostile("empty", "labels")
def test_no_rows(backend: str) -> None:
    *found, first, second = losses(problem(0), None, backend)
    assert not any(found) and first.shape == second.shape == (0, 2)


@pytest.mark.hostile("labels")
@pytest.mark.parametrize("name", ["signal_targets", "direction_targets", "signal_mask"])
def test_refuses_another_length(backend: str, name: str) -> None:
    signal, direction, targets, directions, mask = problem(10)
    parts = {"signal_targets": targets, "direction_targets": directions, "signal_mask": mask}
    parts[name] = parts[name][:-1]
    with pytest.raises(ValueError, match=f"{name}: expected 10 elements"):
        functional.multitask_loss(signal, direction, *parts.values(), backend=backend)


@pytest.mark.hostile("labels")
def test_refuses_labels_and_dtypes(backend: str) -> None:
    signal, direction, targets, directions, mask = problem(10)
    with pytest.raises(ValueError, match="signal_targets: expected 0 or 1, got 2"):
        functional.multitask_loss(signal, direction, targets + 1, directions, mask, backend=backend)
    with pytest.raises(ValueError, match="direction_targets"):
        functional.multitask_loss(signal, direction, targets, directions - 1, None, backend=backend)
    with pytest.raises(TypeError, match="float32"):
        functional.multitask_loss(signal, direction.float(), targets, directions, mask, backend=backend)
    with pytest.raises(ValueError, match=r"signal_logits: expected \[10, 2\]"):
        functional.multitask_loss(signal[:, :1], direction, targets, directions, mask, backend=backend)


@needs_native
def test_a_label_that_is_no_class_gives_nan() -> None:
    signal, direction, targets, directions, mask = problem(10)
    assert torch.ops.hiermt.multitask_loss(signal, direction, targets + 5, directions, mask, 1.0)[0].isnan()
