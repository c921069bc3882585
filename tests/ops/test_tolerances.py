"""The comparison of gradients refuses what is wrong by 5 %, and what is zero."""

from __future__ import annotations

import pytest
import torch

from hiermt.testing import assert_close, tolerance

SIXTEEN_BITS = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *SIXTEEN_BITS], ids=str)
@pytest.mark.parametrize("size", [0.1, 1.0, 100.0])
def test_a_gradient_off_by_a_factor_is_refused(size: float, dtype: torch.dtype) -> None:
    exact = size * torch.randn(20, 5, dtype=torch.float64)
    assert_close(exact.to(dtype), exact, gradient=True)
    for factor in (0.0, 0.65, 0.95, 1.05, 1.35, -1.0):
        with pytest.raises(AssertionError):
            assert_close((factor * exact).to(dtype), exact, gradient=True)
        with pytest.raises(AssertionError):
            assert_close(factor * exact, exact, gradient=True, scaled=True, dtype=dtype)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
def test_special_numbers_stand_in_the_same_places(dtype: torch.dtype) -> None:
    exact = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    assert_close(exact.to(dtype), exact, gradient=True)
    for order in ([0, 2, 1, 3], [0, 1, 3, 2], [1, 0, 2, 3]):
        with pytest.raises(AssertionError, match="other places"):
            assert_close(exact[order].to(dtype), exact, gradient=True)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
def test_a_caller_may_give_another_bound(dtype: torch.dtype) -> None:
    exact = torch.randn(50)
    assert_close((1.05 * exact).to(dtype), exact, gradient=True, rtol=0.06)
    assert tolerance(dtype, gradient=True) == (2e-2, 1e-3)
