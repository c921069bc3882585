"""Joint probabilities of the three classes against torch.distributions and against the decisions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

import hiermt
from hiermt import functional
from hiermt.inference.rolling import Decisions


def logits(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(5, 7, 2, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2))


def probabilities(dtype: torch.dtype = torch.float64) -> Tensor:
    return functional.decision_from_logits(*logits(dtype))[0]


def test_equals_the_product_of_two_categoricals() -> None:
    signal, direction = (Categorical(logits=part) for part in logits())
    zero, one = torch.tensor(0), torch.tensor(1)
    down = (signal.log_prob(one) + direction.log_prob(zero)).exp()
    up = (signal.log_prob(one) + direction.log_prob(one)).exp()
    expected = torch.stack([down, signal.log_prob(zero).exp(), up], dim=-1)
    found = hiermt.joint_probabilities(probabilities())
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(5, 7, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_any_leading_shape(dtype: torch.dtype) -> None:
    full = probabilities(dtype)
    joint = hiermt.joint_probabilities(full)
    assert joint.dtype == dtype
    assert joint.shape == (5, 7, 3)
    assert torch.equal(hiermt.joint_probabilities(full[2, 3]), joint[2, 3])
    assert hiermt.joint_probabilities(full[:0]).shape == (0, 7, 3)
    decisions = Decisions(torch.zeros(5, 7), torch.zeros(5, 7), full)
    assert torch.equal(decisions.classes, joint)


def test_a_coin_flip_is_half_neutral_and_a_quarter_each_way() -> None:
    full, _, confidences = functional.decision_from_logits(*torch.zeros(2, 4, 2))
    assert confidences.tolist() == [0.5] * 4
    assert hiermt.joint_probabilities(full).tolist() == [[0.25, 0.5, 0.25]] * 4


def test_inference_returns_the_same_under_new_keys() -> None:
    signal, direction = logits()
    joint = hiermt.joint_probabilities(functional.decision_from_logits(signal, direction)[0])
    result = hiermt.hierarchical_inference(signal, direction, confidence_scores=True)
    for i, name in enumerate(("p_down", "p_neutral", "p_up")):
        assert torch.equal(result[name], joint[..., i])
    assert "p_up" not in hiermt.hierarchical_inference(signal, direction)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (torch.zeros(3, 2), ValueError, r"expected \[\*, 4\] .* got \[3, 2\]"),
        (torch.tensor(0.5), ValueError, r"got \[\]"),
        (torch.zeros(3, 4, dtype=torch.int64), TypeError, r"got torch\.int64"),
        ([0.1, 0.9, 0.5, 0.5], TypeError, "got list"),
    ],
)
def test_refused(given: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        hiermt.joint_probabilities(given)  # type: ignore[arg-type]
