"""What the kernels read of a module, and whether they may compute in the module's place.

A kernel takes the parameters of many modules and never calls one of their ``forward`` methods. That is right only
while each of these modules would compute what the kernel computes: its own ``forward``, and no hook around it. A part
for which this is not so (an adapter, a subclass, a patched or hooked module) is called instead.

Parameters are read from the dictionaries of a module: ``module.lin.weight`` runs through Python twice, and for all
parameters of a model that takes as long as its kernels on a hundred stocks. What is not a plain parameter, such as a
parametrized weight, is read through the attribute, once for all time steps; where that may be another tensor than at
each step, the part is called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module
from torch.nn.utils import parametrizations

from hiermt.native.tracing import recorded

_MODULE_CALL = nn.Module.__call__
_LINEAR_TYPE, _LINEAR, _PARAMETER = nn.Linear, nn.Linear.forward, nn.Parameter
_ELSEWHERE: Any = object()
_DISABLED = torch._C._disabled_torch_function_impl
# Parametrizations that give the same tensor however often they are computed in a forward.
_REPEATABLE = (parametrizations._WeightNorm, parametrizations._Orthogonal)


def runs(module: nn.Module, forward: Any) -> bool:
    """Whether calling `module` runs the function `forward`, and no hook of the module's own around it."""
    kind = type(module)
    try:
        own = kind.forward
    except AttributeError:  # a ScriptModule has one only on the instance
        return False
    return (
        own is forward
        # torch.export and make_fx replace the call of every module while they record, and call the same.
        and (kind.__call__ is _MODULE_CALL or (kind.__call__ is nn.Module.__call__ and recorded()))
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


def submodule(module: nn.Module, name: str) -> Any:
    """``module.<name>``"""
    found = module._modules.get(name)
    return getattr(module, name) if found is None else found


def parameter(module: nn.Module, name: str) -> Tensor | None:
    """``module.<name>``; ``None`` if it is, or if reading it once is not what reading it at each time step is."""
    found = module._parameters.get(name)
    if type(found) is _PARAMETER:
        return found
    if found is None:
        if not _repeatable(module, name):
            return None
        found = getattr(module, name)
    return None if found is None or _overrides(found) else found


def linear(found: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of a module; ``None`` unless it is a linear with both that computes as such."""
    if not runs(found, _LINEAR) or not (type(found) is _LINEAR_TYPE or _reads_as_linear(found)):
        return None
    parameters = found._parameters
    weight: Tensor | None = parameters.get("weight")
    bias: Tensor | None = parameters.get("bias")
    if type(weight) is not _PARAMETER or type(bias) is not _PARAMETER:
        weight, bias = parameter(found, "weight"), parameter(found, "bias")
    return None if weight is None or bias is None else (weight, bias)


def matrix(found: nn.Module) -> Tensor | None:
    """Weight of a module; ``None`` unless it is a linear without a bias that computes as such."""
    if not runs(found, _LINEAR) or not (type(found) is _LINEAR_TYPE or _reads_as_linear(found)):
        return None
    parameters = found._parameters
    bias, weight = parameters.get("bias", _ELSEWHERE), parameters.get("weight")
    if (found.bias if bias is _ELSEWHERE else bias) is not None:
        return None
    return weight if type(weight) is _PARAMETER else parameter(found, "weight")


def _reads_as_linear(module: nn.Module) -> bool:
    """Whether a subclass of ``torch.nn.Linear`` makes nothing else of a parameter where it is read."""
    kind: Any = type(module)
    return "parametrizations" in module._modules or (
        kind.__getattr__ is nn.Module.__getattr__
        and kind.__getattribute__ is nn.Module.__getattribute__
        and not (hasattr(kind, "weight") or hasattr(kind, "bias"))
    )


def _repeatable(module: nn.Module, name: str) -> bool:
    """Whether ``module.<name>`` is the same tensor each time it is read in a forward: no random or counting
    parametrization makes it."""
    made: Any = module._modules.get("parametrizations")
    if made is None or name not in made._modules:
        return True
    return all(
        isinstance(one, _REPEATABLE) or (isinstance(one, parametrizations._SpectralNorm) and not one.training)
        for one in made._modules[name]._modules.values()
    )


def _overrides(tensor: Tensor) -> bool:
    """Whether functions of torch, such as ``linear``, may do something else with `tensor`."""
    kind: Any = type(tensor)
    return kind is not _PARAMETER and kind is not Tensor and kind.__torch_function__ is not _DISABLED
