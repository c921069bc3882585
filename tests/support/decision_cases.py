"""What the tests of ``hiermt::decision`` share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hiermt.native import extension

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
native = pytest.mark.skipif(extension.why_not_native("cpu") is not None, reason=str(extension.why_not_native("cpu")))


def arguments(n: int, h: int, k: int, dtype: torch.dtype = torch.float64, grad: bool = False) -> list[Tensor]:
    """h and the six parameters."""
    shapes = [(n, h), (k, h), (k,), (2, k), (2,), (2, k), (2,)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(grad) for shape in shapes]
