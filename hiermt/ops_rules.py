"""The rules that native operators have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

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


class EagerOperator:
    """An operator of plain arguments, called with its own autograd rule but without the generic wrapping of
    ``torch.library``, which costs more than these operators themselves.

    Args:
        name (str): of the operator.
        backward, setup_context: what ``torch.library.register_autograd`` takes.
    """

    def __init__(self, name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        self.name, self.backward, self.setup_context = name, backward, setup_context

    @cached_property
    def operator(self) -> Any:
        """The overload behind the name."""
        return getattr(torch.ops.hiermt, self.name).default

    @cached_property
    def function(self) -> type[torch.autograd.Function]:
        """The operator as a node of the autograd graph."""
        operator, set_up, back = self.operator, self.setup_context, self.backward

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                output = call(operator, *args)
                set_up(ctx, args, output)
                return output

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return back(ctx, *grads)

        return Eager

    def __call__(self, *args: Any) -> Any:
        """Runs it; the first argument is a tensor."""
        if torch.compiler.is_compiling():  # which cannot look into a cached property
            return getattr(torch.ops.hiermt, self.name).default(*args)
        if torch.is_autocast_enabled(args[0].device.type):
            return self.operator(*args)
        if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            return self.function.apply(*args)  # type: ignore[no-untyped-call]
        return call_unrecorded(self.operator, *args)


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
