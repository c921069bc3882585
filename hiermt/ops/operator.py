"""A native operator and every rule that PyTorch needs of it, made from one table.

``torch.library`` gets shapes (fake), gradient, autocast and vmap rules. In eager mode an operator is called past them,
with the same gradient: the generic wrapping of ``torch.library`` costs more than a small kernel, and 0.2 ms where there
are lists of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hiermt.native import extension
from hiermt.ops import batched

_status = extension.native_status()
if not _status.available:
    raise RuntimeError(f"hiermt.ops needs the native library: {_status.reason}. To fix: {_status.fix}")

# Kept alive: a registration ends with the library object that made it.
_library = torch.library.Library("hiermt", "IMPL")  # type: ignore[no-untyped-call]


class Operator:
    """An operator that has a backward; making one registers its rules.

    Args:
        name (str): of the operator; its backward is called ``<name>_backward``.
        fake, fake_backward (callable): outputs without values, from the arguments of the operator and its backward.
        save (callable): ``(ctx, args, options, output)`` keeps what `gradients` reads; `options` are keyword arguments.
        gradients (callable): ``(ctx, need, *cotangents)`` gives a gradient for each positional argument, a list for a
            list; `need` says in the same form which are wanted, and a cotangent is ``None`` where nothing depends on
            that output. Called unless all are ``None``.
        differentiable (int): number of leading outputs that have a gradient. (default: ``1``)
        first_only (bool): in eager mode the first output is returned, and the others only saved. (default: ``False``)
        autocast (bool): compute in the dtype of an autocast region. (default: ``True``)
    """

    def __init__(
        self,
        name: str,
        fake: Callable[..., Any],
        fake_backward: Callable[..., Any],
        save: Callable[..., None],
        gradients: Callable[..., Sequence[Any]],
        *,
        differentiable: int = 1,
        first_only: bool = False,
        autocast: bool = True,
    ) -> None:
        self.name, self.first_only = name, first_only
        self.overload = getattr(torch.ops.hiermt, name).default

        def set_up(ctx: Any, args: Sequence[Any], options: dict[str, Any], output: Any) -> None:
            ctx.set_materialize_grads(False)
            if isinstance(output, tuple) and not ctx.first_only:
                ctx.mark_non_differentiable(*output[differentiable:])
            save(ctx, args, options, output)

        def differentiate(ctx: Any, need: Sequence[Any], cotangents: Sequence[Tensor | None]) -> Sequence[Any]:
            if all(cotangent is None for cotangent in cotangents):
                return [[None] * len(one) if isinstance(one, (list, tuple)) else None for one in need]
            return gradients(ctx, need, *cotangents[:differentiable])

        def set_up_registered(
            ctx: Any, inputs: Sequence[Any], output: Any, keyword_only_inputs: dict[str, Any] | None = None
        ) -> None:
            ctx.first_only = False
            set_up(ctx, inputs, keyword_only_inputs or {}, output)

        def differentiate_registered(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
            return tuple(differentiate(ctx, ctx.needs_input_grad, cotangents))

        def double_backward(ctx: Any, *grads: Any) -> NoReturn:
            raise NotImplementedError(
                f"hiermt.{name} has no second derivative; use backend='reference' for double backward"
            )

        overload = self.overload

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, lengths: list[int], options: dict[str, Any], *flat: Any) -> Any:
                args = _nested(flat, lengths)
                output = call(overload, *args, **options)
                ctx.lengths, ctx.first_only = lengths, first_only
                set_up(ctx, args, options, output)
                return output[0] if first_only else output

            @staticmethod
            def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
                need = _nested(ctx.needs_input_grad[2:], ctx.lengths)
                return None, None, *_flat(differentiate(ctx, need, cotangents))

        self.function = Eager
        register_fake(name, fake)
        register_fake(f"{name}_backward", fake_backward)
        torch.library.register_autograd(f"hiermt::{name}", differentiate_registered, setup_context=set_up_registered)
        torch.library.register_autograd(f"hiermt::{name}_backward", double_backward)
        batched.register(f"{name}_backward")
        if autocast:
            register_autocast(name)

    def __call__(self, recorded: bool, *args: Any, **options: Any) -> Any:
        """Runs it; `recorded`: autograd will want a gradient. The first argument is a tensor."""
        if torch.compiler.is_compiling():  # which takes an overload from torch.ops alone
            output = getattr(torch.ops.hiermt, self.name).default(*args, **options)
        elif torch.is_autocast_enabled(args[0].device.type):
            output = self.overload(*args, **options)
        elif recorded:
            lengths = [len(arg) if type(arg) is list else -1 for arg in args]
            return self.function.apply(lengths, options, *_flat(args))  # type: ignore[no-untyped-call]
        else:
            output = call_unrecorded(self.overload, *args, **options)
        return output[0] if self.first_only else output


def _flat(args: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for arg in args:
        if type(arg) is list:
            flat += arg
        else:
            flat.append(arg)
    return flat


def _nested(flat: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    """Undoes :func:`_flat`; a length of -1 stands for what was not a list."""
    args: list[Any] = []
    at = 0
    for length in lengths:
        if length < 0:
            args.append(flat[at])
            at += 1
        else:
            args.append(list(flat[at : at + length]))
            at += length
    return args


def call_unrecorded(overload: Any, *args: Any, **options: Any) -> Any:
    """Calls an overload past its autograd rule, which is Python and costs as much as a small kernel."""
    with torch._C._AutoDispatchBelowAutograd():
        return overload(*args, **options)


def call(overload: Any, *args: Any, **options: Any) -> Any:
    """The same, but only where autograd would record nothing."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return overload(*args, **options)
    return call_unrecorded(overload, *args, **options)


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Gives the operator `name` its shapes."""
    torch.library.register_fake(f"hiermt::{name}", fake)


def register_autocast(name: str) -> None:
    """Lets the operator `name` compute in the dtype of the autocast region it is called in.

    ``torch.library.register_autocast`` wants that dtype at registration; a region may choose float16 or bfloat16.
    float64 is left alone, as by torch's own rules.
    """
    overload = getattr(torch.ops.hiermt, name).default

    for device_type in ("cpu", "cuda"):

        def rule(*args: Any, device_type: str = device_type, **options: Any) -> Any:
            dtype = torch.get_autocast_dtype(device_type)

            def cast(value: Any) -> Any:
                if not isinstance(value, Tensor) or value.device.type != device_type:
                    return value
                narrow = value.is_floating_point() and value.dtype != torch.float64
                return value.to(dtype) if narrow else value

            with torch.autocast(device_type, enabled=False):
                return overload(*tree_map(cast, args), **options)

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
def index_errors(marker: str) -> Iterator[None]:
    """Turns an error of an operator that says `marker` into an IndexError: the stable ABI carries one type only."""
    try:
        yield
    except RuntimeError as error:
        if marker in str(error):
            raise IndexError(str(error)) from None
        raise


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


def fake_scan(
    x: Tensor, hidden: Any, starts: Tensor | None, steps: Any, sequence: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What a scan returns: out, the sequence ``[N, T, H]`` or an empty tensor, and the gates' values."""
    nodes = x.size(0)
    nodes, steps = (nodes, x.size(1)) if starts is None else (starts.size(0) * nodes, steps)
    h = x.new_empty((nodes, steps, hidden) if sequence or save else (0,))
    last = x.new_empty((0,) if sequence else (nodes, hidden))
    # CUDA computes the gates again.
    gates = x.new_empty((nodes, steps, 3, hidden) if save and x.device.type == "cpu" else (0,))
    return (h, last, gates) if sequence else (last, h, gates)


def windows_outside(starts: Tensor | None) -> AbstractContextManager[None]:
    """Turns what an operator says of a window outside the series into an IndexError."""
    if starts is None or torch.compiler.is_compiling():
        return nullcontext()
    return index_errors("is outside the days")


def keeps(ctx: Any, options: dict[str, Any]) -> bool:
    """Whether the forward was asked to save what the backward reads; notes that, and the other options, in `ctx`."""
    ctx.options = {name: value for name, value in options.items() if name != "save"}
    ctx.saved = options["save"]
    return ctx.saved  # type: ignore[no-any-return]


def kept(ctx: Any, name: str) -> tuple[Tensor, ...]:
    """What the forward of the operator `name` saved."""
    if not ctx.saved:
        raise RuntimeError(f"hiermt::{name} was called with save=False: it has no gradient")
    return ctx.saved_tensors  # type: ignore[no-any-return]
