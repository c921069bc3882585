"""When products of float32 may be rounded to TF32: what torch itself was told, and on CUDA alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hiermt.native import extension

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from hiermt.ops import operator


class OnCuda:
    """Stands for a tensor on a GPU."""

    is_cuda = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def allowed(x: Any) -> bool:
    return operator.allows_tf32(x)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


def test_follows_torch() -> None:
    x = OnCuda(torch.float32)
    assert not allowed(x)
    for precision, wanted in (("high", True), ("medium", True), ("highest", False)):
        torch.set_float32_matmul_precision(precision)
        assert allowed(x) is wanted
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert allowed(x)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert not allowed(x)


def test_only_float32_on_cuda() -> None:
    torch.set_float32_matmul_precision("high")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert not allowed(OnCuda(dtype))
    assert not allowed(torch.ones(2))


def test_a_compiled_function_follows_too() -> None:
    stand_in = OnCuda(torch.float32)

    @torch.compile(fullgraph=True, backend="eager")
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if allowed(stand_in) else x + 2

    ones = torch.full((2,), 3.0)
    assert torch.equal(scaled(ones), ones + 2)
    torch.set_float32_matmul_precision("high")
    assert torch.equal(scaled(ones), ones * 2)
