"""Checks of the arguments of operators: parameters, devices, dtypes and shapes; autocast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hiermt._arguments import check_tensor
from hiermt._tracing import refuse_tracing
from hiermt.graph import Graph
from hiermt.native import dispatch

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Numbers of parameters: a weight and a bias of the output linear and each head, and of each gate.
HEAD_PARAMS, GATE_PARAMS = 6, 6
# A size, or a letter that stands for any.
Size = int | str


class Expected(NamedTuple):
    """Name and shape of an argument.

    Dimensions of size 1 do not matter in a `flat` one: PyG stores an attention vector as ``[1, 1, H]``.
    """

    name: str
    shape: tuple[Size, ...]
    flat: bool = False


def prepare(
    operator: str,
    x: Tensor,
    others: Sequence[Tensor],
    expected: Callable[[], Sequence[Expected]],
    graph: Graph | None,
    backend: str,
    autocast: torch.dtype | None = None,
) -> tuple[list[Tensor], Callable[..., Any]]:
    """Applies autocast to the tensors of a call, and chooses the implementation that it calls.

    Args:
        operator (str): its name.
        x (Tensor): decides on device and dtype.
        others (sequence of Tensor): parameters and the like.
        expected (callable): names and shapes of `x` and `others`, in order. A native operator checks all of them in
            C++, so there they are asked for after an error only, for its message.
        graph (Graph, optional): must be on the device of `x`, and its nodes divide those of `x`. (default: ``None``)
        backend (str): implementation.
        autocast (torch.dtype, optional): dtype in an autocast region. (default: ``None``, that of the region)

    Raises:
        TypeError: something is not a Tensor, or a dtype does not fit.
        ValueError: a shape or a device does not fit.
    """
    tensors = [x, *others]
    if not isinstance(x, Tensor) or (graph is not None and x.dim() != 3):
        check_arguments(tensors, expected())
    device = x.device
    if x.dim():
        refuse_tracing(x.size(0))
    if graph is not None:
        if graph.edge_index.device != device:
            raise ValueError(f"x is on {device}, the graph on {graph.device}; move one with .to(...)")
        nodes = x.size(0)
        if nodes % max(graph.num_nodes, 1):
            raise ValueError(f"x has {nodes} nodes, which is not a multiple of the graph's {graph.num_nodes}")
    is_autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)  # which raises on meta
    if is_autocast:
        tensors = _cast(tensors, autocast or torch.get_autocast_dtype(device.type))
    dtype = tensors[0].dtype
    if dtype not in _DTYPES:
        check_arguments(tensors, expected())
    native = dispatch.native(backend, device, dtype)
    run = dispatch.operator(operator, native)
    if native and not torch.compiler.is_compiling():
        run = partial(_run_explained, run, tensors, expected)
    else:
        check_arguments(tensors, expected())
    return tensors, without_autocast(run) if is_autocast else run


def _run_explained(
    run: Callable[..., Any],
    tensors: Sequence[Tensor],
    expected: Callable[[], Sequence[Expected]],
    *args: Any,
    **options: Any,
) -> Any:
    """Calls a native operator; what it refuses gets the exception of :func:`check_arguments`."""
    try:
        return run(*args, **options)
    except Exception:
        check_arguments(tensors, expected())
        raise


def check_arguments(tensors: Sequence[Tensor], expected: Sequence[Expected]) -> None:
    """Raises unless all are Tensors of these shapes, on the device of the first and in its dtype.

    Raises:
        TypeError: something is not a Tensor, or a dtype does not fit.
        ValueError: a shape or a device does not fit.
    """
    for tensor, (name, _, _) in zip(tensors, expected, strict=True):
        check_tensor(name, tensor)
    first, device, dtype = expected[0].name, tensors[0].device, tensors[0].dtype
    if dtype not in _DTYPES:
        raise TypeError(f"{first}: expected float32, float64, bfloat16 or float16, got {dtype}; use {first}.float()")
    for tensor, (name, shape, flat) in zip(tensors, expected, strict=True):
        if tensor.device != device:
            raise ValueError(f"{first} is on {device}, {name} on {tensor.device}; move one with .to(...)")
        if tensor.dtype != dtype:
            raise TypeError(
                f"{first} is {dtype}, {name} {tensor.dtype}; convert {first} or the model so that they agree"
            )
        if not _fits(tensor, shape, flat):
            sizes = ", ".join(str(size) for size in shape)
            raise ValueError(f"{name}: expected shape [{sizes}], got {list(tensor.shape)}")


def _fits(tensor: Tensor, shape: tuple[Size, ...], flat: bool) -> bool:
    if flat:
        size = shape[0]
        return tensor.numel() == size and (size == 1 or size in tensor.shape)
    if tensor.dim() != len(shape):
        return False
    for size, found in zip(shape, tensor.shape, strict=True):
        if not isinstance(size, str) and size != found:
            return False
    return True


def size_of(tensor: Any, dim: int, letter: str) -> Size:
    """The size of an argument that may be no Tensor or have fewer dimensions; then `letter`."""
    return tensor.size(dim) if isinstance(tensor, Tensor) and dim < tensor.dim() else letter


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """As autocast does: neither integers nor float64."""
    cast = []
    for tensor in tensors:
        narrow = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
        cast.append(tensor.to(dtype) if narrow else tensor)
    return cast


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, called outside autocast on the device of its first argument: it keeps the dtypes of its arguments."""

    def run(x: Tensor, *args: Any, **options: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args, **options)

    return run


def check_length(name: str, tensors: Sequence[Tensor], expected: int) -> None:
    """Raises unless there are `expected` tensors."""
    if not hasattr(tensors, "__len__"):
        raise TypeError(f"{name}: expected a sequence of {expected} Tensors, got {type(tensors).__name__}")
    if len(tensors) != expected:
        raise ValueError(f"{name}: expected {expected} tensors, got {len(tensors)}")


def gates_expected(argument: str, channels: Size, hidden: Size, convolved: bool = True) -> list[Expected]:
    """The parameters of three gates over `channels` inputs, their convolution if `convolved`, and the state.

    `argument` holds them.
    """
    times = 2 if convolved else 1
    known = not isinstance(channels, str) and not isinstance(hidden, str)
    inputs: Any = channels + times * hidden if known else f"{channels} + {times} * {hidden}"  # type: ignore[operator]
    found = []
    for gate in ("u", "r", "c"):
        found.append(Expected(f"{argument}: {gate}.weight", (hidden, inputs)))
        found.append(Expected(f"{argument}: {gate}.bias", (hidden,)))
    return found
