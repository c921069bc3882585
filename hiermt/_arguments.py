"""What every public function does with its arguments: devices and dtypes agree, autocast is followed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from hiermt import _backend
from hiermt.graph import Graph

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def enter(
    x: Tensor, others: Sequence[Tensor], graph: Graph | None, backend: str, autocast: torch.dtype | None = None
) -> tuple[list[Tensor], bool]:
    """Checks devices and dtypes, applies autocast, and says whether the native operator runs."""
    device = x.device
    if graph is not None and graph.device != device:
        raise ValueError(f"x is on {device}, the graph on {graph.device}; move one with .to(...)")
    if graph is not None and x.size(0) % max(graph.num_nodes, 1):
        raise ValueError(f"x has {x.size(0)} nodes, which is no multiple of the graph's {graph.num_nodes}")
    tensors = [x, *others]
    if torch.is_autocast_enabled(device.type):
        dtype = autocast or torch.get_autocast_dtype(device.type)
        tensors = [t.to(dtype) if t.dtype != torch.float64 else t for t in tensors]
    dtype = tensors[0].dtype
    if dtype not in _DTYPES:
        raise TypeError(f"x: expected float32, float64, bfloat16 or float16, got {dtype}; use x.float()")
    for tensor in tensors:
        if tensor.device != device:
            raise ValueError(f"x is on {device}, a parameter on {tensor.device}; move one with .to(...)")
        if tensor.dtype != dtype:
            raise TypeError(f"x is {dtype}, a parameter {tensor.dtype}; convert x or the model so that they agree")
    return tensors, _backend.native(backend, device, dtype)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, dtypes are what the arguments say."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def check_linear(name: str, weight: Tensor, inputs: int) -> None:
    """Refuses a weight that takes another number of channels than there are."""
    if weight.dim() != 2 or weight.size(1) != inputs:
        raise ValueError(f"{name} takes {weight.size(-1)} channels, but gets {inputs}")


def check_integer(name: str, value: object, least: int) -> None:
    """Refuses what is no integer of `least` or more; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if int(value) < least:
        raise ValueError(f"{name}: expected {least} or more, got {value}")
