"""Arguments of the multi-task loss that are refused, and NumPy's that are taken."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hiermt
from hiermt import MultiTaskLoss, functional
from support.loss_problem import problem


def test_weights_elsewhere_are_refused() -> None:
    criterion = MultiTaskLoss(signal_weight=[1.0, 3.0]).to("meta")
    with pytest.raises(ValueError, match=r"signal_weight is on meta, the logits on cpu; .*\.to"):
        criterion.terms(*problem())


@pytest.mark.parametrize("name", ["signal_weight", "direction_weight"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (torch.ones(2, requires_grad=True), TypeError, "requires grad"),
        (nn.Parameter(torch.ones(2)), TypeError, "requires grad"),
        (torch.ones(2, dtype=torch.bool), TypeError, "real"),
        (torch.ones(3), ValueError, "2 weights"),
        (torch.ones(1, 2), ValueError, "2 weights"),
        ([1.0], ValueError, "2 weights"),
        ([1.0, 1.0, 1.0], ValueError, "2 weights"),
        ([1.0, -1.0], ValueError, r"\[1\]"),
        ([math.nan, 1.0], ValueError, r"\[0\]"),
        (torch.tensor([1.0, math.inf]), ValueError, r"\[1\]"),
        ([True, 1.0], TypeError, r"\[0\]"),
        (["1", 1.0], TypeError, r"\[0\]"),
        (2.0, TypeError, "two weights"),
    ],
)
def test_wrong_weights_are_refused(name: str, value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"{name}.*{text}"):
        MultiTaskLoss(**{name: value})
    with pytest.raises(error, match=f"{name}.*{text}"):
        functional.multitask_loss(*problem(), **{name: value})


WRONG: list[tuple[Any, type[Exception]]] = [
    (math.nan, ValueError),
    (math.inf, ValueError),
    (-math.inf, ValueError),
    (np.float32("nan"), ValueError),
    (True, TypeError),
    (np.True_, TypeError),
    ("1", TypeError),
    (None, TypeError),
    (1j, TypeError),
]


@pytest.mark.hostile("scalars")
@pytest.mark.parametrize(("value", "error"), WRONG, ids=str)
def test_wrong_numbers_are_refused(value: Any, error: type[Exception]) -> None:
    for name in ("lambda_direction", "label_smoothing", "focal_gamma"):
        with pytest.raises(error, match=name):
            MultiTaskLoss(**{name: value})
        with pytest.raises(error, match=name):
            functional.multitask_loss(*problem(), **{name: value})
    criterion = MultiTaskLoss()
    criterion.lambda_direction = value
    with pytest.raises(error, match="lambda_direction"):
        criterion.terms(*problem())
    model = hiermt.TGCN_HierarchicalMT(3, 4)
    with pytest.raises(error, match="lambda_direction"):
        hiermt.train_hierarchical(model, torch.optim.SGD(model.parameters()), None, [], None, 1, value)


def test_numbers_out_of_range_and_tensors_are_refused() -> None:
    for name, values in (("label_smoothing", (-0.1, 1.1)), ("focal_gamma", (-1e-9,))):
        for value in values:
            with pytest.raises(ValueError, match=name):
                MultiTaskLoss(**{name: value})
        for tensor in (torch.tensor(0.1), torch.tensor(0.0), nn.Parameter(torch.tensor(0.0))):
            with pytest.raises(TypeError, match=name):
                MultiTaskLoss(**{name: tensor})
            with pytest.raises(TypeError, match=name):
                functional.multitask_loss(*problem(), **{name: tensor})
    model = hiermt.TGCN_HierarchicalMT(3, 4)
    with pytest.raises(TypeError, match="lambda_direction"):
        hiermt.train_hierarchical(
            model,
            torch.optim.SGD(model.parameters()),
            None,
            [],
            None,
            1,
            torch.tensor(0.5),  # type: ignore[arg-type]
        )
    with pytest.raises(ValueError, match="lambda_direction: expected one element"):
        MultiTaskLoss(torch.ones(2))
    with pytest.raises(TypeError, match="lambda_direction"):
        functional.multitask_loss(*problem(), None, torch.tensor(True))


@pytest.mark.parametrize("one", [np.float32(0.5), np.float64(0.5), np.float16(0.5)], ids=lambda one: type(one).__name__)
def test_numbers_of_numpy_are_accepted(one: Any) -> None:
    args = problem()
    expected = functional.multitask_loss(*args, None, 0.5, label_smoothing=0.5, focal_gamma=0.5)
    found = functional.multitask_loss(*args, None, one, label_smoothing=one, focal_gamma=one)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert type(MultiTaskLoss(one).lambda_direction) is float
    assert MultiTaskLoss(np.int64(2)).lambda_direction == 2.0


@pytest.mark.parametrize("weight", [{0: 1.0, 1: 5.0}, {1.0, 5.0}, frozenset((1.0, 2.0))])
def test_weights_without_an_order_are_refused(weight: Any) -> None:
    with pytest.raises(TypeError, match="signal_weight: expected two weights in the order of the classes"):
        MultiTaskLoss(signal_weight=weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_learned_lambda_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="lambda_direction: expected a finite number"):
        MultiTaskLoss(torch.nn.Parameter(torch.tensor(value)))
