"""The native multi-task loss against torch's cross entropy, in values, gradients and refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt import MultiTaskLoss, functional, reference
from hiermt.native import extension
from hiermt.testing import assert_close

needs_native = pytest.mark.skipif(extension.why_not_native("cpu") is not None, reason="no native operators")
DTYPES = [torch.float32, torch.float64]


def problem(rows: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    """Logits of both heads, targets, and the mask of the signals."""
    generator = torch.Generator().manual_seed(seed)
    signal, direction = (3 * torch.randn(rows, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    targets = torch.randint(2, (2, rows), generator=generator)
    return signal.to(dtype), direction.to(dtype), targets[0], targets[1], targets[0] == 1


def losses_and_gradients(
    args: tuple[Tensor, ...],
    mask: Tensor | None,
    weights: tuple[float, float, float],
    backend: str,
    factor: float = 0.7,
) -> list[Tensor]:
    logits = [tensor.detach().clone().requires_grad_() for tensor in args[:2]]
    losses = functional.multitask_loss(*logits, args[2], args[3], mask, factor, backend=backend)
    sum(weight * loss for weight, loss in zip(weights, losses, strict=True)).backward()
    return [*(loss.detach() for loss in losses), *(tensor.grad for tensor in logits)]


@needs_native
def test_is_the_documents_loss() -> None:
    signal, direction, targets, directions, mask = problem(333)
    total, parts = MultiTaskLoss(0.5, backend="native")(signal, direction, targets, directions, mask)
    expected_signal = F.cross_entropy(signal, targets, reduction="none").mean()
    expected_direction = F.cross_entropy(direction[mask], directions[mask], reduction="none").mean()
    assert_close(total, expected_signal + 0.5 * expected_direction)
    assert parts["signal_loss"] == pytest.approx(float(expected_signal), rel=1e-12)
    assert parts["direction_loss"] == pytest.approx(float(expected_direction), rel=1e-12)


def test_no_signal_gives_zero(backend: str) -> None:
    signal, direction, targets, directions, _ = problem(40)
    mask = torch.zeros(40, dtype=torch.bool)
    _, _, loss, _, gradient = losses_and_gradients(
        (signal, direction, targets, directions), mask, (1.0, 1.0, 1.0), backend
    )
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
def test_masked_rows_never_spread(backend: str, garbage: float) -> None:
    signal, direction, targets, directions, mask = problem(100)
    clean = losses_and_gradients((signal, direction, targets, directions), mask, (1.0, 0.0, 0.0), backend)
    direction, directions = direction.clone(), directions.clone()
    direction[~mask], directions[~mask] = garbage, -7
    dirty = losses_and_gradients((signal, direction, targets, directions), mask, (1.0, 0.0, 0.0), backend)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(dirty[4][~mask], torch.zeros_like(dirty[4][~mask]))


@needs_native
@pytest.mark.parametrize("pair", [(80.0, -80.0), (1e30, -1e30), (float("inf"), 0.0), (-float("inf"), 0.0)])
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_logits(pair: tuple[float, float], target: int, dtype: torch.dtype) -> None:
    logits = torch.tensor([pair, (0.1, 0.2)], dtype=dtype)
    targets = torch.tensor([target, 0])
    args = (logits, logits.clone(), targets, targets)
    own = losses_and_gradients(args, None, (1.0, 0.0, 0.0), "native")
    for one, other in zip(own, losses_and_gradients(args, None, (1.0, 0.0, 0.0), "reference"), strict=True):
        assert_close(one, other)


@needs_native
def test_nan_propagates() -> None:
    signal, direction, targets, directions, mask = problem(20)
    signal = signal.clone()
    signal[3, 0] = float("nan")
    total, of_signal, of_direction, gradient, _ = losses_and_gradients(
        (signal, direction, targets, directions), mask, (1.0, 0.0, 0.0), "native"
    )
    assert total.isnan() and of_signal.isnan() and of_direction.isfinite()
    assert gradient[3].isnan().all() and gradient[:3].isfinite().all()


@needs_native
def test_bfloat16_and_autocast() -> None:
    signal, direction, targets, directions, mask = problem(64, torch.bfloat16)
    own = functional.multitask_loss(signal, direction, targets, directions, mask, backend="native")
    expected = reference.multitask_loss(signal, direction, targets, directions, mask, 1.0)
    assert own[0].dtype == torch.bfloat16
    for one, other in zip(own, expected, strict=True):
        assert_close(one, other)
    for backend in ("native", "reference"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.multitask_loss(signal, direction, targets, directions, mask, backend=backend)[0]
        assert loss.dtype == torch.float32


def test_no_rows(backend: str) -> None:
    signal, direction, targets, directions, mask = problem(0)
    signal.requires_grad_()
    direction.requires_grad_()
    total, of_signal, of_direction = functional.multitask_loss(
        signal, direction, targets, directions, mask, backend=backend
    )
    assert total == of_signal == of_direction == 0
    gradients = torch.autograd.grad(total, [signal, direction])
    assert [gradient.shape for gradient in gradients] == [(0, 2), (0, 2)]


@pytest.mark.parametrize("name", ["signal_targets", "direction_targets", "signal_mask"])
def test_refuses_another_length(backend: str, name: str) -> None:
    signal, direction, targets, directions, mask = problem(10)
    parts = {"signal_targets": targets, "direction_targets": directions, "signal_mask": mask}
    parts[name] = parts[name][:-1]
    with pytest.raises(ValueError, match=f"{name}: expected 10 elements"):
        functional.multitask_loss(signal, direction, *parts.values(), backend=backend)


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
def test_the_operator_guards_itself() -> None:
    """What is called by hand gets a RuntimeError before anything is read; a label that is no class gives NaN."""
    signal, direction, targets, directions, mask = problem(10)
    operator = torch.ops.hiermt.multitask_loss
    with pytest.raises(RuntimeError, match="mask"):
        operator(signal, direction, targets, directions, mask[:3], 1.0)
    with pytest.raises(RuntimeError, match="signal_targets"):
        operator(signal, direction, targets.int(), directions, mask, 1.0)
    assert operator(signal, direction, targets + 5, directions, mask, 1.0)[0].isnan()
