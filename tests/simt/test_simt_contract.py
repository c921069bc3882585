"""The contract of the operators on the CUDA kernels, compiled for the host: the problems and checks of tests/ops."""

from __future__ import annotations

import pytest
import torch

from simt.cases import bits, check, needs_harness
from simt.harness import Simt
from support.calls import DTYPES, LAYOUTS, run
from support.contract import SMALL, every_variant
from support.problems import VARIANTS, Problem

pytestmark = needs_harness


@pytest.mark.hostile("empty", "loops", "unwritten")
@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_equals_twin(problem: Problem) -> None:
    check(problem)


@pytest.mark.compiled
@pytest.mark.hostile("dtypes")
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32], ids=str)
@every_variant
def test_equals_twin_in_every_dtype(variant: str, dtype: torch.dtype) -> None:
    check(VARIANTS[variant](3), dtype)


@pytest.mark.hostile("strides")
@pytest.mark.parametrize("layout", LAYOUTS)
@every_variant
def test_any_layout_of_the_inputs_gives_the_same_bits(variant: str, layout: str) -> None:
    with Simt():
        found = run(VARIANTS[variant](2), True, layout=LAYOUTS[layout]).tensors()
    assert_same(found, bits(VARIANTS[variant](2)))


@pytest.mark.hostile("determinism")
@every_variant
def test_every_order_of_threads_gives_the_same_bits(variant: str) -> None:
    first = bits(VARIANTS[variant](9))
    for order in ("1", "2"):
        assert_same(bits(VARIANTS[variant](9), {"HIERMT_SIMT_ORDER": order}), first)


@every_variant
def test_any_subset_of_inputs_may_require_grad(variant: str) -> None:
    problem = VARIANTS[variant](2)
    with Simt():
        every = run(problem, True).gradients
        for i in range(len(every)):
            found = run(problem, True, wanted=[i]).gradients
            for k, gradient in enumerate(found):
                full = every[i]
                assert gradient is None if k != i or full is None else torch.equal(gradient, full)


def assert_same(found: list[torch.Tensor | None], expected: list[torch.Tensor | None]) -> None:
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other)), f"result {i}"
