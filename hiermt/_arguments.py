"""Checks of single arguments: tensors, integers and numbers."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor


def check_tensor(name: str, value: object, expected: str = "a Tensor") -> None:
    """Raises ``TypeError`` unless `value` is a dense Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}{_unpack(value)}")
    check_dense(name, value)


def check_dense(name: str, tensor: Tensor) -> None:
    """Raises ``TypeError`` for a sparse or nested tensor."""
    if tensor.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got a nested one; pad it with .to_padded_tensor(...)")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {tensor.layout}; use {name}.to_dense()")


def _unpack(value: object) -> str:
    """The way out for a graph of PyG or a batch in place of its tensors."""
    graph = all(hasattr(value, attribute) for attribute in ("x", "edge_index"))
    return "; pass its tensors: model(data.x, data.edge_index, data.edge_weight)" if graph else ""


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
