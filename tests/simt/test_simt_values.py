"""What the CUDA kernels make of NaN, infinities and windows outside the series."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hiermt.testing import assert_close
from simt.cases import bits, conv, layer, needs_harness, scan, windows
from simt.harness import Simt
from support import edge_numbers, saturated
from support.calls import prepare, run
from support.edge_numbers import Place
from support.problems import VARIANTS, Problem, Stack

pytestmark = needs_harness

SPECIAL = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize(
    "problem",
    [
        conv(16, steps=6, activation=0),
        conv(16, steps=6, activation=0, stack=Stack(1, False)),
        layer(16, steps=6),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["x", "edge_weight"])
def test_special_values_go_where_the_twin_sends_them(problem: Problem, where: str, value: float) -> None:
    x, csr, weight, *rest = problem.arguments
    x, weight = x.clone(), weight.clone()
    if where == "x":
        x[2, 1, 3], x[4, 5] = value, value
    else:
        weight[3] = value
    spoilt = problem._replace(arguments=(x, csr, weight, *rest))
    with Simt():
        (found,) = run(spoilt, True, wanted=()).values
    (expected,) = run(spoilt, False, torch.float64, wanted=()).values
    assert torch.equal(found.isnan(), expected.isnan()) and expected.isnan().any() == (expected != expected).any()
    assert_close(found, expected)


@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channel", [0, 12])
@pytest.mark.parametrize("hidden", [8, 16, 64])
def test_an_infinite_channel_stays_infinite(hidden: int, channel: int, dtype: torch.dtype) -> None:
    """Beside the last channel of x the products read what is not there."""
    problem = conv(hidden, stack=Stack(1, False), activation=0)
    x, *rest = problem.arguments
    x = x.clone()
    x[0, 0, channel] = float("inf")
    spoilt = problem._replace(arguments=(x, *rest))
    with Simt():
        (found,) = run(spoilt, True, dtype, wanted=()).values
    (expected,) = run(spoilt, False, torch.float64, wanted=(), rounded=dtype).values
    assert expected.isinf().any() and not expected.isnan().any()
    assert torch.equal(found.isinf(), expected.isinf()) and not found.isnan().any()


def test_an_entry_at_minus_infinity_has_no_part_in_a_stack() -> None:
    problem = layer(16, steps=6)
    x, csr, weight, params, *rest = problem.arguments
    weight = weight.clone()
    weight[3] = -float("inf")
    params = [one.abs() if i % 7 in (4, 6) else one for i, one in enumerate(params)]
    spoilt = problem._replace(arguments=(x, csr, weight, params, *rest))
    with Simt():
        (found,) = run(spoilt, True, wanted=()).values
    (expected,) = run(spoilt, False, torch.float64, wanted=()).values
    assert expected.isfinite().all()
    assert_close(found, expected)


@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("hidden", [8, 16, 32, 64])
def test_the_score_of_a_loop_alone_is_not_finite(hidden: int, value: float) -> None:
    """Its coefficient is 1 whatever the score is, unless that is not finite."""
    problem = layer(hidden, nodes=4, edges=0, steps=2)
    x, csr, weight, params, *rest = problem.arguments
    params = [torch.full_like(one, value) if i == 4 else one for i, one in enumerate(params)]
    spoilt = problem._replace(arguments=(x, csr, weight, params, *rest))
    with Simt():
        (found,) = run(spoilt, True, wanted=()).values
    (expected,) = run(spoilt, False, torch.float64, wanted=()).values
    assert expected.isnan().all() and found.isnan().all()


def with_starts(problem: Problem, starts: list[int]) -> Problem:
    return problem._replace(arguments=(*problem.arguments[:4], torch.tensor(starts)))


@pytest.mark.parametrize("start", [-1, 11, 2**31, 2**40, 2**63 - 1, -(2**63)])
def test_no_start_leads_out_of_the_series(start: int) -> None:
    """The window is taken as the one nearest to it that lies in the series."""
    problem = windows(16, starts=(1, 0))
    assert_same(bits(with_starts(problem, [1, start])), bits(with_starts(problem, [1, 0 if start < 0 else 10])))


def test_a_day_of_no_window_counts_for_nothing() -> None:
    problem = windows(16)
    unused = [6, 7, 8, 13]
    x, g, *rest = (one.clone() if isinstance(one, torch.Tensor) else one for one in problem.arguments)
    x[:, unused], g[:, unused] = float("nan"), float("inf")
    found = bits(problem._replace(arguments=(x, g, *rest)))
    assert_same(found, bits(problem))
    for gradient in found[1:3]:
        assert gradient is not None and not gradient[:, unused].any()


@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("value", SPECIAL)
def test_a_weight_that_is_not_finite_gives_a_day_of_no_window_no_gradient(value: float) -> None:
    problem = windows(16)
    x, g, h0, gates, *rest = problem.arguments
    gates = [gates[0].clone().fill_(value), *gates[1:]]
    for gradient in bits(problem._replace(arguments=(x, g, h0, gates, *rest)))[1:3]:
        assert gradient is not None and gradient.isnan().any() and not gradient[:, [6, 7, 8, 13]].any()


def test_one_window_over_all_days_is_the_plain_scan() -> None:
    problem = windows(16, starts=(0,), days=5, steps=5, stocks=7)
    plain = scan(16)._replace(arguments=problem.arguments[:4])
    with Simt():
        (found,), (expected,) = (run(one, True, wanted=()).values for one in (problem, plain))
    assert torch.equal(found, expected)


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other)), f"result {i}"


@pytest.mark.hostile("empty")
@pytest.mark.parametrize("variant", ["conv_stack, two", "conv_stack, GCN", "tgcn_layer", "gated_scan", "decision"])
def test_no_kernel_makes_a_gradient_of_nothing(variant: str) -> None:
    with Simt():
        for leaf, tensor in enumerate(prepare(VARIANTS[variant](0)).leaves):
            for found in (
                edge_numbers.run(VARIANTS[variant](0), Place(leaf, 0), SPECIAL[0], True) if tensor.numel() else ()
            ):
                assert found is None or not found.any()


@pytest.mark.hostile("rounding")
@pytest.mark.parametrize("hidden", [16, 17, 40])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_of_a_saturated_softmax(sign: float, hidden: int) -> None:
    with Simt():
        found = saturated.errors("native", hidden, sign)
    assert max(found.values()) <= 1e-4, found
