"""The multi-task loss against a plain reading of its formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hiermt


def batch(rows: int = 50, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.randn(rows, 2, dtype=dtype, requires_grad=True),
        torch.randn(rows, 2, dtype=dtype, requires_grad=True),
        torch.randint(0, 2, (rows,)),
        torch.randint(0, 2, (rows,)),
    )


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_indexing_with_the_mask(weight: float, masked: bool) -> None:
    signal, direction, signal_targets, direction_targets = batch()
    mask = signal_targets == 1 if masked else None
    rows = mask if mask is not None else slice(None)
    expected_signal = F.cross_entropy(signal, signal_targets)
    expected_direction = F.cross_entropy(direction[rows], direction_targets[rows])
    expected = expected_signal + weight * expected_direction
    loss, parts = hiermt.MultiTaskLoss(weight)(signal, direction, signal_targets, direction_targets, mask)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    assert parts["signal_loss"] == pytest.approx(expected_signal.item(), rel=1e-6)
    assert parts["direction_loss"] == pytest.approx(expected_direction.item(), rel=1e-6)
    assert parts["total_loss"] == pytest.approx(expected.item(), rel=1e-6)
    ours = torch.autograd.grad(loss, [signal, direction])
    for found, wanted in zip(ours, torch.autograd.grad(expected, [signal, direction]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.hostile("labels")
def test_no_signal_gives_a_zero_direction_loss_with_a_graph() -> None:
    signal, direction, _, direction_targets = batch()
    none = torch.zeros(50, dtype=torch.long)
    loss, parts = hiermt.MultiTaskLoss()(signal, direction, none, direction_targets, none == 1)
    assert parts["direction_loss"] == 0.0
    assert math.isfinite(parts["total_loss"])
    loss.backward()
    assert direction.grad is not None
    assert torch.equal(direction.grad, torch.zeros_like(direction))


@pytest.mark.parametrize("masked", [True, False])
def test_no_rows_give_zero_losses_with_a_graph(backend: str, masked: bool) -> None:
    signal, direction, signal_targets, direction_targets = batch(0)
    mask = signal_targets == 1 if masked else None
    criterion = hiermt.MultiTaskLoss(0.5, backend=backend)
    loss, parts = criterion(signal, direction, signal_targets, direction_targets, mask)
    assert parts == {"signal_loss": 0.0, "direction_loss": 0.0, "total_loss": 0.0}
    loss.backward()
    assert signal.grad is not None and signal.grad.shape == (0, 2) and direction.grad is not None


def test_rows_outside_the_mask_may_hold_anything() -> None:
    signal, direction, signal_targets, direction_targets = batch()
    mask = signal_targets == 1
    clean, _ = hiermt.MultiTaskLoss()(signal, direction, signal_targets, direction_targets, mask)
    with torch.no_grad():
        dirty = direction.masked_fill(~mask.unsqueeze(-1), float("nan"))
    dirty.requires_grad_()
    targets = direction_targets.masked_fill(~mask, -1)
    loss, _ = hiermt.MultiTaskLoss()(signal, dirty, signal_targets, targets, mask)
    torch.testing.assert_close(loss, clean)
    loss.backward()
    assert dirty.grad is not None
    assert dirty.grad.isfinite().all()


def test_labels_and_logits_with_extra_dimensions() -> None:
    signal, direction, signal_targets, direction_targets = batch(1)
    flat, _ = hiermt.MultiTaskLoss()(signal, direction, signal_targets, direction_targets)
    column, _ = hiermt.MultiTaskLoss()(signal, direction, signal_targets.view(1, 1), direction_targets.view(1, 1))
    shared, _ = hiermt.MultiTaskLoss()(signal.view(1, 1, 2), direction.view(1, 1, 2), signal_targets, direction_targets)
    assert flat == column == shared


@pytest.mark.hostile("labels")
def test_wrong_input_is_refused() -> None:
    signal, direction, signal_targets, direction_targets = batch()
    loss = hiermt.MultiTaskLoss()
    with pytest.raises(ValueError, match="signal_targets: expected 0 or 1, got 2"):
        loss(signal, direction, signal_targets + 1, direction_targets)
    with pytest.raises(ValueError, match="direction_targets: expected 0 or 1, got -1"):
        loss(signal, direction, signal_targets, direction_targets - 1)
    with pytest.raises(ValueError, match="direction_targets: expected 50 elements"):
        loss(signal, direction, signal_targets, direction_targets[:-1])
    with pytest.raises(ValueError, match="signal_mask: expected 50 elements"):
        loss(signal, direction, signal_targets, direction_targets, torch.ones(49, dtype=torch.bool))
    for bad in (signal[:, :1], signal.t(), signal.reshape(25, 4)):
        with pytest.raises(ValueError, match=r"signal_logits: expected \[\*, 2\]"):
            loss(bad, direction, signal_targets, direction_targets)


def test_gradcheck() -> None:
    signal, direction, signal_targets, direction_targets = batch(6, torch.float64)
    mask = signal_targets == 1

    def run(*logits: Tensor) -> Tensor:
        return hiermt.MultiTaskLoss(0.7).terms(*logits, signal_targets, direction_targets, mask).total

    assert torch.autograd.gradcheck(run, (signal, direction))
