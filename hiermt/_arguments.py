"""Argument checks of the public functions: types, ranges, devices and dtypes; autocast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hiermt.native import dispatch
from hiermt.native.tracing import refuse_tracing

if TYPE_CHECKING:
    from hiermt.graph import Graph

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def prepare(
    x: Tensor, others: Sequence[Tensor], graph: Graph | None, backend: str, autocast: torch.dtype | None = None
) -> tuple[list[Tensor], bool]:
    """Checks devices and dtypes, applies autocast, and tells whether the native operator runs."""
    for tensor in (x, *others):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"x and parameters: expected Tensors, got {type(tensor).__name__}")
    device = x.device
    if graph is not None:
        if graph.edge_index.device != device:
            raise ValueError(f"x is on {device}, the graph on {graph.device}; move one with .to(...)")
        nodes = x.size(0)
        refuse_tracing(nodes)
        if nodes % max(graph.num_nodes, 1):
            raise ValueError(f"x has {nodes} nodes, which is not a multiple of the graph's {graph.num_nodes}")
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
    return tensors, dispatch.native(backend, device, dtype)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Context without autocast: operators keep the dtypes of their arguments."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def check_tensor(name: str, value: object) -> None:
    """Raises ``TypeError`` unless `value` is a Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")


def check_linear(name: str, weight: Tensor, inputs: int) -> None:
    """Raises unless `weight` is a matrix with `inputs` columns."""
    if weight.dim() != 2 or weight.size(1) != inputs:
        raise ValueError(f"{name} has {weight.size(-1)} input channels, but its input has {inputs}")


class NotAnInteger(TypeError, ValueError):
    """A size of the wrong type. Also a ValueError, so that one clause catches every bad size."""


def check_integer(name: str, value: object, least: int) -> int:
    """Returns `value`, which may be a NumPy integer, as an ``int``.

    Raises:
        NotAnInteger: it is not an integer. Booleans are rejected.
        ValueError: it is below `least`.
    """
    # A size that torch.compile or an export leaves open is a SymInt, which is not an Integral.
    if type(value) is not int and not isinstance(value, torch.SymInt):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise NotAnInteger(f"{name}: expected an integer, got {value!r}")
        value = int(value)
    if value < least:
        raise ValueError(f"{name}: expected {least} or more, got {value}")
    return value  # type: ignore[return-value]


def check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """Returns `value`, which may be a NumPy number, as a ``float``.

    Raises:
        TypeError: it is not a number. Booleans are rejected, and so are Tensors, whose gradient would be lost.
        ValueError: it is NaN or infinite, or outside ``[least, most]``.
    """
    if type(value) is not float:
        if isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a number, got a Tensor, which gets no gradient here; use float({name})")
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}: expected a number, got {value!r}")
        value = float(value)
    # Infinity and NaN fail one of the two comparisons.
    if least <= value <= most and value - value == 0.0:
        return value
    if least == -math.inf:
        raise ValueError(f"{name}: expected a finite number, got {value}")
    if most == math.inf:
        raise ValueError(f"{name}: expected a finite number of {least:g} or more, got {value}")
    raise ValueError(f"{name}: expected a number in [{least:g}, {most:g}], got {value}")


# Parameters of a head and of the gates: a weight and a bias each.
HEAD_PARAMS, GATE_PARAMS = 6, 6


def check_length(name: str, tensors: Sequence[Tensor], expected: int) -> None:
    """Raises unless there are `expected` tensors."""
    if len(tensors) != expected:
        raise ValueError(f"{name}: expected {expected} tensors, got {len(tensors)}")


def check_gates(gates: Sequence[Tensor], channels: int) -> int:
    """Raises unless `gates` are the parameters of three gates over `channels` inputs; returns ``H``."""
    check_length("gates", gates, GATE_PARAMS)
    weight = gates[0]
    if weight.dim() != 2:
        raise ValueError(f"u.weight: expected [H, F + 2H], got {list(weight.shape)}")
    hidden = weight.size(0)
    check_linear("u.weight", weight, channels + 2 * hidden)
    return hidden


def check_heads(params: Sequence[Tensor]) -> None:
    """Raises unless `params` are as many as those of the output linear and two heads."""
    check_length("params", params, HEAD_PARAMS)
