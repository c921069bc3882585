"""Masks of stocks that come and go: checked, and applied to the input of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiermt._arguments import check_tensor

WINDOWS_HOLD = "present: windows hold the mask of their series: Windows(series, starts, steps, present)"


def check_present(present: Tensor, shape: Sequence[int], x: Tensor, name: str = "present") -> Tensor:
    """Returns the mask; raises unless it is a bool Tensor of this shape on the device of `x`.

    Raises:
        TypeError: it is not a Tensor, or not bool.
        ValueError: its shape or device is another.
    """
    check_tensor(name, present, "a bool Tensor")
    if present.dtype != torch.bool:
        raise TypeError(f"{name}: expected a bool Tensor, got {present.dtype}; use {name}.bool() or {name} > 0")
    if tuple(present.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(present.shape)}")
    if present.device != x.device:
        raise ValueError(f"x is on {x.device}, {name} on {present.device}; move one with .to(...)")
    return present


def absent_as_zero(x: Tensor, present: Tensor, name: str = "x") -> Tensor:
    """``x [N, T, ...]`` with zeros where a node is absent by a mask ``[N, T]``: what is there may be NaN.

    Raises:
        TypeError, ValueError: as :func:`check_present`.
    """
    check_tensor(name, x)
    if x.dim() != 3:
        raise ValueError(f"{name}: expected 3 dimensions, the first two those of a mask, got {list(x.shape)}")
    return torch.where(check_present(present, x.shape[:2], x).unsqueeze(-1), x, 0)


def backend_for(backend: str, present: Tensor | None) -> str:
    """The backend of a call that may have a mask: the kernels take none yet."""
    return backend if present is None else "reference"
