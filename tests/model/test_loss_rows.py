"""The loss over the rows that count: torch's cross entropy on the selected rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt import MultiTaskLoss, functional
from hiermt.testing import assert_close
from support.loss_problem import problem

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"signal_weight": [0.3, 2.7], "direction_weight": [1.2, 0.1]},
    "smoothing": {"label_smoothing": 0.1},
    "focal": {"focal_gamma": 2.0},
    "all": {"signal_weight": [0.3, 2.7], "label_smoothing": 0.05, "focal_gamma": 1.5},
}


def head(logits: Tensor, targets: Tensor, weight: Any, smoothing: float, gamma: float) -> Tensor:
    weight = None if weight is None else torch.as_tensor(weight, dtype=logits.dtype)
    rows = F.cross_entropy(logits, targets, weight, reduction="none", label_smoothing=smoothing)
    p = logits.softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return ((1 - p) ** gamma * rows).sum() / (len(targets) if weight is None else weight[targets].sum())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("masked", [True, False])
def test_equals_the_loss_of_the_selected_rows(backend: str, name: str, masked: bool) -> None:
    args, options = problem(200), OPTIONS[name]
    rows = torch.rand(200) < 0.6
    mask = args[2] == 1 if masked else None
    logits = [tensor.requires_grad_() for tensor in args[:2]]
    smoothing, gamma = options.get("label_smoothing", 0.0), options.get("focal_gamma", 0.0)
    of_signal = head(args[0][rows], args[2][rows], options.get("signal_weight"), smoothing, gamma)
    both = rows if mask is None else rows & mask
    of_direction = head(args[1][both], args[3][both], options.get("direction_weight"), smoothing, gamma)
    expected = (of_signal + 0.7 * of_direction, of_signal, of_direction)

    found = MultiTaskLoss(0.7, backend=backend, **options).terms(*args, mask, rows)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.detach(), other.detach())
    for one, other in zip(torch.autograd.grad(found[0], logits), torch.autograd.grad(expected[0], logits), strict=True):
        assert_close(one, other, gradient=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_other_rows_may_hold_anything(backend: str, name: str) -> None:
    args, rows = problem(300), torch.rand(300) < 0.5
    criterion = MultiTaskLoss(0.7, backend=backend, **OPTIONS[name])

    def run(*given: Tensor) -> list[Tensor]:
        logits = [tensor.detach().requires_grad_() for tensor in given[:2]]
        terms = criterion.terms(*logits, *given[2:], given[2] == 1, rows)
        return [*(term.detach() for term in terms), *torch.autograd.grad(terms.total, logits)]

    clean = run(*args)
    signal, direction, targets, directions = args
    every = rows[:, None]
    dirty = run(
        signal.masked_fill(~every, math.nan),
        direction.masked_fill(~every, math.inf),
        targets.masked_fill(~rows, -7),
        directions.masked_fill(~rows, 9),
    )
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)
    assert not dirty[3][~rows].any() and not dirty[4][~rows].any()


@pytest.mark.parametrize("name", OPTIONS)
def test_no_row_gives_zero(backend: str, name: str) -> None:
    args = problem(30)
    logits = [tensor.requires_grad_() for tensor in args[:2]]
    none = torch.zeros(30, dtype=torch.bool)
    terms = MultiTaskLoss(backend=backend, **OPTIONS[name]).terms(*args, args[2] == 1, none)
    assert not any(terms)
    assert not any(gradient.any() for gradient in torch.autograd.grad(terms.total, logits))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_row_is_the_loss_without_a_mask(backend: str, dtype: torch.dtype) -> None:
    args = problem(500, dtype)
    every = torch.ones(500, dtype=torch.bool)
    with_mask, without = (
        functional.multitask_loss(*args, args[2] == 1, 0.3, row_mask=rows, backend=backend) for rows in (every, None)
    )
    for one, other in zip(with_mask, without, strict=True):
        assert_close(one, other)


def test_refuses_another_length_and_labels_that_count(backend: str) -> None:
    args, rows = problem(10), torch.arange(10) < 5
    with pytest.raises(ValueError, match="row_mask: expected 10 elements"):
        functional.multitask_loss(*args, row_mask=rows[:-1], backend=backend)
    args[2][7] = 4
    functional.multitask_loss(*args, row_mask=rows, backend=backend)
    args[2][2] = 4
    with pytest.raises(ValueError, match="signal_targets: expected 0 or 1, got 4"):
        functional.multitask_loss(*args, row_mask=rows, backend=backend)
