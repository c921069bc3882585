"""The rules that native operators have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hiermt.ops import batched

# Kept alive: a registration ends with the library object that made it.
_library = torch.library.Library("hiermt", "IMPL")  # type: ignore[no-untyped-call]


def call_unrecorded(operator: Any, *args: Any) -> Any:
    """Calls an overload past its autograd rule, which is Python and costs as much as a small kernel."""
    if torch.compiler.is_compiling():
        return operator(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def call(operator: Any, *args: Any) -> Any:
    """The same, but only where autograd would record nothing."""
    return operator(*args) if torch.is_grad_enabled() else call_unrecorded(operator, *args)


def register(
    name: str,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> None:
    """Attaches its rules to the operator `name` and to ``<name>_backward``, which has no gradient of its own."""

    def double_backward(ctx: Any, *grads: Any) -> NoReturn:
        raise NotImplementedError(
            f"hiermt.{name} has no second derivative; use backend='reference' for double backward"
        )

    torch.library.register_fake(f"hiermt::{name}", fake)
    torch.library.register_fake(f"hiermt::{name}_backward", fake_backward)
    torch.library.register_autograd(f"hiermt::{name}", backward, setup_context=setup_context)
    torch.library.register_autograd(f"hiermt::{name}_backward", double_backward)
    batched.register(f"{name}_backward")
    register_autocast(name)


def register_autocast(name: str) -> None:
    """Lets the operator `name` compute in the dtype of the autocast region it is called in.

    ``torch.library.register_autocast`` wants that dtype at registration; a region may choose float16 or bfloat16.
    float64 is left alone, as by torch's own rules.
    """
    operator = getattr(torch.ops.hiermt, name).default

    for device_type in ("cpu", "cuda"):

        def rule(*args: Any, device_type: str = device_type) -> Any:
            dtype = torch.get_autocast_dtype(device_type)

            def cast(value: Any) -> Any:
                if not isinstance(value, Tensor) or value.device.type != device_type:
                    return value
                narrow = value.is_floating_point() and value.dtype != torch.float64
                return value.to(dtype) if narrow else value

            with torch.autocast(device_type, enabled=False):
                return operator(*tree_map(cast, args))

        _library.impl(name, rule, f"Autocast{device_type.upper()}")  # type: ignore[no-untyped-call]


def allows_tf32(x: Tensor) -> bool:
    """Whether dense float32 products of ``x``'s device may round their operands, as torch's own do there.

    ``torch.set_float32_matmul_precision("high")`` and ``torch.backends.cuda.matmul.fp32_precision = "tf32"`` allow it.
    """
    if not x.is_cuda or x.dtype != torch.float32:
        return False
    if torch.compiler.is_compiling():  # of the two settings the one that can be traced, with a guard
        return bool(torch.backends.cuda.matmul.allow_tf32)
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd will want the gradient of one of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


@contextmanager
def windows_outside() -> Iterator[None]:
    """Turns what an operator says of a window outside the series into an IndexError."""
    try:
        yield
    except RuntimeError as error:
        # The stable ABI carries one type of exception only.
        if "is outside the days" in str(error):
            raise IndexError(str(error)) from None
        raise


def fake_scan(
    x: Tensor, shape: Sequence[int], sequence: bool, save: bool, save_gates: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What a scan returns: out, the sequence ``[N, T, H]`` of `shape` or an empty tensor, and the gates."""
    nodes, steps, hidden = shape
    h = x.new_empty((nodes, steps, hidden) if sequence or save else (0,))
    last = x.new_empty((0,) if sequence else (nodes, hidden))
    gates = x.new_empty((nodes, steps, 3, hidden) if save_gates else (0,))
    return (h, last, gates) if sequence else (last, h, gates)


def fake_gradients(x: Tensor, params: Sequence[Tensor], wanted: bool) -> list[Tensor]:
    """Gradients of parameters, in the dtype that the kernels compute in."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [x.new_empty(param.shape if wanted else (0,), dtype=compute) for param in params]


def gradients_of(params: Sequence[Tensor], grads: Sequence[Tensor], need: Sequence[bool]) -> list[Tensor | None]:
    """The gradients that are wanted, each in the dtype of its parameter."""
    triples = zip(params, grads, need, strict=True)
    return [
        None if not needed else grad if grad.dtype == param.dtype else grad.to(param.dtype)
        for param, grad, needed in triples
    ]


def save_scan(ctx: Any, output: tuple[Tensor, ...], inputs: Sequence[Any], gates: Sequence[Tensor]) -> None:
    """Keeps what the backward of a scan reads, if ``ctx.saved``; `output` is out, the sequence, the gates' values."""
    out, h, saved = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(h, saved)
    if ctx.saved:
        ctx.save_for_backward(*inputs, out if ctx.sequence else h, saved, *gates)


def saved_scan(ctx: Any, name: str, count: int) -> tuple[Any, Tensor, Tensor, list[Tensor]]:
    """What :func:`save_scan` kept: `count` inputs, the sequence, the gates' values, the parameters of the gates."""
    if not ctx.saved:
        raise RuntimeError(f"hiermt::{name} was called with save=False: it has no gradient")
    tensors = ctx.saved_tensors
    return tensors[:count], tensors[count], tensors[count + 1], list(tensors[count + 2 :])
