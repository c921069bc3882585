"""Random logits and labels for the tests of the multi-task loss."""

from __future__ import annotations

import torch
from torch import Tensor


def problem(rows: int = 60, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    signal, direction = (2 * torch.randn(rows, 2, dtype=torch.float64)).to(dtype), torch.randn(rows, 2).to(dtype)
    return signal, direction, torch.randint(2, (rows,)), torch.randint(2, (rows,))
