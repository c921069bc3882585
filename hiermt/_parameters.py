"""What the kernels read of a module, and whether they may compute in the module's place.

A kernel takes the parameters of many modules and never calls one of their ``forward`` methods. That is right only
while each of these modules would compute what the kernel computes: its own ``forward``, and no hook around it. A part
for which this is not so (an adapter, a subclass, a patched or hooked module) is called instead.

Parameters are read from the dictionaries of a module: ``module.lin.weight`` runs through Python twice, and for all
parameters of a model that takes as long as its kernels on a hundred stocks. What is not a plain parameter, such as a
parametrized weight, is read through the attribute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module

_MODULE_CALL = nn.Module.__call__
_LINEAR = nn.Linear.forward


def runs(module: nn.Module, forward: Any) -> bool:
    """Whether calling `module` runs the function `forward`, and no hook of the module's own around it."""
    kind = type(module)
    return (
        kind.forward is forward
        # torch.export replaces the call of every module while it traces, and calls the same.
        and (kind.__call__ is _MODULE_CALL or (kind.__call__ is nn.Module.__call__ and torch.compiler.is_compiling()))
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in module.__dict__
        )
    )


def has_global_hook() -> bool:
    """Whether a hook surrounds the call of every module."""
    return bool(
        _torch_module._global_forward_hooks
        or _torch_module._global_forward_pre_hooks
        or _torch_module._global_backward_hooks
        or _torch_module._global_backward_pre_hooks
    )


def parameter(module: nn.Module, name: str) -> Tensor | None:
    """``module.<name>``"""
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found


def submodule(module: nn.Module, name: str) -> Any:
    """``module.<name>``"""
    found = module._modules.get(name)
    return getattr(module, name) if found is None else found


def linear(module: nn.Module, name: str) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of ``module.<name>``; ``None`` unless it is a linear with both that computes as such."""
    found = submodule(module, name)
    if not runs(found, _LINEAR):
        return None
    parameters = found._parameters
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None or bias is None:  # parametrized, or no bias
        weight, bias = found.weight, found.bias
    return None if bias is None else (weight, bias)


def matrix(module: nn.Module, name: str) -> Tensor | None:
    """Weight of ``module.<name>``; ``None`` unless it is a linear without a bias that computes as such."""
    found = submodule(module, name)
    if not runs(found, _LINEAR) or found._parameters.get("bias") is not None:
        return None
    return parameter(found, "weight")
