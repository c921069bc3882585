"""A native operator and every rule that PyTorch needs of it, made from one table.

``torch.library`` gets shapes (fake), gradient, autocast and vmap rules. In eager mode an operator is called past them,
with the same gradient: the generic wrapping of ``torch.library`` costs more than a small kernel, and 0.2 ms where there
are lists of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hiermt._tracing import refuse_onnx
from hiermt.native import extension
from hiermt.ops import batched

_status = extension.native_status()
if not _status.available:
    raise RuntimeError(f"hiermt.ops needs the native library: {_status.reason}. To fix: {_status.fix}")

# Kept alive: a registration ends with the library object that made it.
_library = torch.library.Library("hiermt", "IMPL")  # type: ignore[no-untyped-call]

# Calls an operator past its autograd rule, which is Python and costs as much as a small kernel.
_below_autograd = torch._C._AutoDispatchBelowAutograd


class Operator:
    """An operator that has a backward; making one registers its rules.

    Args:
        name (str): of the operator; its backward is called ``<name>_backward``.
        fake, fake_backward (callable): outputs without values, from the arguments of the operator and its backward.
        save (callable): ``(ctx, args, output)`` keeps what `gradients` reads; `args` are the positional arguments. The
            keyword arguments are in ``ctx.options``, without ``save``.
        gradients (callable): ``(ctx, need, *cotangents)`` gives a gradient for each positional argument, a list for a
            list; `need` says in the same form which are wanted, and a cotangent is ``None`` where nothing depends on
            that output. Called unless all are ``None``.
        differentiable (int): number of leading outputs that have a gradient. (default: ``1``)
        saves (bool): the operator has an option ``save``, whether a gradient will be wanted; without it, it keeps
            nothing and has no gradient. In eager mode the first output is returned, and the others only saved.
            (default: ``False``)
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
        saves: bool = False,
        autocast: bool = True,
    ) -> None:
        self.name, self.saves = name, saves
        self.overload = overload = getattr(torch.ops.hiermt, name).default

        def differentiate(ctx: Any, need: Sequence[Any], cotangents: Sequence[Tensor | None]) -> Sequence[Any]:
            for cotangent in cotangents:
                if cotangent is not None:
                    return gradients(ctx, need, *cotangents[:differentiable])
            return [[None] * len(one) if isinstance(one, (list, tuple)) else None for one in need]

        def set_up_registered(
            ctx: Any, inputs: Sequence[Any], output: Any, keyword_only_inputs: dict[str, Any] | None = None
        ) -> None:
            ctx.options = dict(keyword_only_inputs or {})
            ctx.saved = ctx.options.pop("save", True)
            ctx.set_materialize_grads(False)
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[differentiable:])
            if ctx.saved:
                save(ctx, inputs, output)

        def differentiate_registered(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
            if not ctx.saved:
                raise RuntimeError(f"hiermt::{name} was called with save=False: it has no gradient")
            return tuple(differentiate(ctx, ctx.needs_input_grad, cotangents))

        def double_backward(ctx: Any, *grads: Any) -> NoReturn:
            raise NotImplementedError(
                f"hiermt.{name} has no second derivative; use backend='reference' for double backward"
            )

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(
                ctx: Any, args: Sequence[Any], options: dict[str, Any], lengths: Sequence[int], *flat: Any
            ) -> Any:
                """`flat` are the elements of `args`: autograd sees no tensor inside a list."""
                ctx.set_materialize_grads(False)
                ctx.lengths, ctx.options = lengths, options
                if saves:
                    output = call(overload, *args, **options, save=True)
                    save(ctx, args, output)
                    return output[0]
                output = call(overload, *args, **options)
                if isinstance(output, tuple):
                    ctx.mark_non_differentiable(*output[differentiable:])
                save(ctx, args, output)
                return output

            @staticmethod
            def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
                need = _nested(ctx.needs_input_grad[3:], ctx.lengths)
                grads, _ = _flat(differentiate(ctx, need, cotangents))
                return None, None, None, *grads

        # Past the wrapper of Function.apply, which prepares every argument for torch.func; its transforms do not get
        # here, because they take the twin.
        self.apply = super(torch.autograd.Function, Eager).apply
        register_fake(name, fake)
        register_fake(f"{name}_backward", fake_backward)
        torch.library.register_autograd(f"hiermt::{name}", differentiate_registered, setup_context=set_up_registered)
        torch.library.register_autograd(f"hiermt::{name}_backward", double_backward)
        batched.register(f"{name}_backward")
        if autocast:
            register_autocast(name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Runs the operator. The first argument is a tensor; lists of tensors may be tuples.

        Raises:
            IndexError: a window lies outside the series; looked at on the CPU only.
        """
        recorded = torch.is_grad_enabled() and requires_grad(args)
        if torch.compiler.is_compiling():
            # torch.compile takes an overload from torch.ops alone.
            saving = {"save": recorded} if self.saves else {}
            output = getattr(torch.ops.hiermt, self.name).default(*args, **options, **saving)
            return output[0] if self.saves else output
        try:
            if torch.is_autocast_enabled(args[0].device.type):
                saving = {"save": recorded} if self.saves else {}
                output = self.overload(*args, **options, **saving)
            elif recorded:
                flat, lengths = _flat(args)
                return self.apply(args, options, lengths, *flat)  # type: ignore[no-untyped-call]
            else:
                saving = {"save": False} if self.saves else {}
                with _below_autograd():
                    output = self.overload(*args, **options, **saving)
        except RuntimeError as error:
            raise typed(error) from None
        return output[0] if self.saves else output


def _flat(args: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """The arguments with the elements of lists in their place, and the length of each list, or -1."""
    flat: list[Any] = []
    lengths = []
    for arg in args:
        if isinstance(arg, (list, tuple)):
            flat += arg
            lengths.append(len(arg))
        else:
            flat.append(arg)
            lengths.append(-1)
    return flat, lengths


def _nested(flat: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    """Undoes :func:`_flat`."""
    args: list[Any] = []
    at = 0
    for length in lengths:
        if length < 0:
            args.append(flat[at])
            at += 1
        else:
            args.append(flat[at : at + length])
            at += length
    return args


def call(overload: Any, *args: Any, **options: Any) -> Any:
    """Calls an overload, past its autograd rule where that would record nothing."""
    return overload(*args, **options) if torch.is_grad_enabled() else infer(overload, *args, **options)


def infer(overload: Any, *args: Any, **options: Any) -> Any:
    """Calls an overload, past its autograd rule: no argument requires a gradient."""
    if torch.compiler.is_compiling():
        return overload(*args, **options)
    try:
        with _below_autograd():
            return overload(*args, **options)
    except RuntimeError as error:
        raise typed(error) from None


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Gives the operator `name` its shapes.

    The rule is that of meta tensors too, and one of them among real tensors would make a result of no values.
    """

    def checked(*args: Any, **options: Any) -> Any:
        refuse_onnx()
        kinds = {one.device.type for one in tree_leaves((args, options)) if isinstance(one, Tensor)}
        if "meta" in kinds and len(kinds) > 1:
            raise RuntimeError(f"hiermt::{name}: some arguments are on meta, others on {max(kinds - {'meta'})}")
        return fake(*args, **options)

    torch.library.register_fake(f"hiermt::{name}", checked)


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


def masked(x: Tensor, present: Tensor | None) -> Tensor:
    """``x [N, T, F]`` as the kernels take it: those of the CPU do not read absent nodes, those of CUDA read zeros."""
    return x if present is None or not x.is_cuda else torch.where(present.unsqueeze(-1), x, 0)


def requires_grad(args: Sequence[Any]) -> bool:
    """Whether one of the arguments, or an element of one, requires a gradient."""
    for arg in args:
        for one in arg if isinstance(arg, (list, tuple)) else (arg,):
            if isinstance(one, Tensor) and one.requires_grad:
                return True
    return False


def typed(error: RuntimeError) -> Exception:
    """The error of an operator as Python has it: the stable ABI carries RuntimeError alone."""
    text = str(error)
    # Callers that halve their batch catch torch's own exception.
    if re.search(r"out of memory.* on cuda:", text) and not isinstance(error, torch.OutOfMemoryError):
        return torch.OutOfMemoryError(text)
    return IndexError(text) if "is outside the " in text else error


def fake_gradients(x: Tensor, params: Sequence[Tensor], wanted: bool) -> list[Tensor]:
    """Gradients of parameters, in the dtype that the kernels compute in."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [x.new_empty(param.shape if wanted else (0,), dtype=compute) for param in params]


def gradients_of(params: Sequence[Tensor], grads: Sequence[Tensor], need: Sequence[bool]) -> list[Tensor | None]:
    """The gradients that are wanted, each in the dtype of its parameter."""
    found: list[Tensor | None] = []
    for param, grad, needed in zip(params, grads, need, strict=True):
        found.append((grad if grad.dtype == param.dtype else grad.to(param.dtype)) if needed else None)
    return found


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
