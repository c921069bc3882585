"""Masks of stocks that come and go."""

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


def check_mask(x: Tensor, present: Tensor | None, backend: str) -> str:
    """Checks the mask of ``x [N, T, F]``, if there is one, and returns the backend of the call.

    Raises:
        TypeError, ValueError: as :func:`check_present`.
    """
    if present is None:
        return backend
    check_tensor("x", x)
    if x.dim() != 3:
        raise ValueError(f"x: expected 3 dimensions, the first two those of a mask, got {list(x.shape)}")
    check_present(present, x.shape[:2], x)
    return backend
