"""Backward operators under batched cotangents: called once for each element.

``torch.autograd.grad(..., is_grads_batched=True)`` and ``jacobian(..., vectorize=True)`` run a backward under the older
vmap of autograd, ``torch.vmap`` around ``torch.autograd.grad`` under that of ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Kept alive: a registration ends with the library object that made it.
_library = torch.library.Library("hiermt", "IMPL")  # type: ignore[no-untyped-call]


def register(name: str) -> None:
    """Gives the operator `name`, which returns tensors, its rules for both kinds of vmap."""
    operator = getattr(torch.ops.hiermt, name).default

    def rule(info: Any, in_dims: Any, *args: Any, **options: Any) -> Any:
        def pick(value: Any, dim: Any, element: int) -> Any:
            if isinstance(value, (list, tuple)):
                return [pick(one, at, element) for one, at in zip(value, dim, strict=True)]
            return value if dim is None or not isinstance(value, Tensor) else value.select(dim, element)

        outputs = _stacked(lambda element: operator(*pick(args, in_dims, element), **options), info.batch_size)
        return outputs, type(outputs)([0] * len(outputs))

    def older_rule(*args: Any, **options: Any) -> Any:
        with _outside_vmap() as level:
            # Of a tensor without this level, a batch of one.
            whole = [_each_tensor(arg, lambda one: torch._remove_batch_dim(one, level, 1, 0)) for arg in args]
            sizes: list[int] = []
            for arg in whole:
                _each_tensor(arg, lambda one: sizes.append(one.size(0)))

            def call(element: int) -> Any:
                return operator(
                    *(_each_tensor(arg, lambda one: one[element if one.size(0) > 1 else 0]) for arg in whole),
                    **options,
                )

            outputs = _stacked(call, max(sizes))
        return type(outputs)(torch._add_batch_dim(output, 0, level) for output in outputs)

    torch.library.register_vmap(f"hiermt::{name}", rule)
    _library.impl(name, older_rule, "Batched")  # type: ignore[no-untyped-call]


@contextmanager
def _outside_vmap() -> Iterator[int]:
    """Leaves the innermost level of the older vmap, and gives its number."""
    level = torch._C._vmapmode_decrement_nesting() + 1
    try:
        yield level
    finally:
        torch._C._vmapmode_increment_nesting()


def _stacked(call: Callable[[int], Any], size: int) -> Any:
    """The outputs of `size` calls, stacked, in the kind of sequence that a call returns."""
    calls = [call(element) for element in range(size)]
    return type(calls[0])(torch.stack(parts) for parts in zip(*calls, strict=True))


def _each_tensor(value: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_each_tensor(one, function) for one in value]
    return function(value) if isinstance(value, Tensor) else value
