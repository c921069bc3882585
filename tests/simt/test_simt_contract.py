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
@every_variant
def test_any_layout_of_the_inputs_gives_the_same_bits(variant: str) -> None:
    expected = bits(VARIANTS[variant](2))
    for name, layout in LAYOUTS.items():
        with Simt():
            found = run(VARIANTS[variant](2), True, layout=layout).tensors()
        assert_same(found, expected, name)


@pytest.mark.hostile("determinism")
@every_variant
def test_every_order_of_threads_gives_the_same_bits(variant: str) -> None:
    """Of two copies; tests/simt/test_simt_sizes.py has many blocks and partial sums."""
    first = bits(VARIANTS[variant](2))
    for order in ("1", "2"):
        assert_same(bits(VARIANTS[variant](2), {"HIERMT_SIMT_ORDER": order}), first)


@every_variant
def test_any_subset_of_inputs_may_require_grad(variant: str) -> None:
    """Halves by each binary digit of their numbers: of any two inputs, one half has the first without the second."""
    problem = VARIANTS[variant](2)
    with Simt():
        every = run(problem, True).gradients
        for digit in range((len(every) - 1).bit_length()):
            for value in (0, 1):
                wanted = [i for i in range(len(every)) if i >> digit & 1 == value]
                found = run(problem, True, wanted=wanted).gradients
                for i, (gradient, full) in enumerate(zip(found, every, strict=True)):
                    expected = full if i in wanted else None
                    assert gradient is None if expected is None else torch.equal(gradient, expected), f"{i} of {wanted}"


def assert_same(found: list[torch.Tensor | None], expected: list[torch.Tensor | None], of: str = "") -> None:
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other)), f"{of} result {i}"
