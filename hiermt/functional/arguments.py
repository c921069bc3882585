"""Checks of the arguments of operators: parameters, devices and dtypes; autocast."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hiermt._tracing import refuse_tracing
from hiermt.graph import Graph
from hiermt.native import dispatch

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Numbers of parameters: a weight and a bias of the output linear and each head, and of each gate.
HEAD_PARAMS, GATE_PARAMS = 6, 6


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


def check_linear(name: str, weight: Tensor, inputs: int) -> None:
    """Raises unless `weight` is a matrix with `inputs` columns."""
    if weight.dim() != 2 or weight.size(1) != inputs:
        raise ValueError(f"{name} has {weight.size(-1)} input channels, but its input has {inputs}")


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
