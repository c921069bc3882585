"""Reads the parameters of modules for the kernels, and checks that a kernel may replace the modules.

A kernel reads the parameters of many modules and calls none of their ``forward`` methods. That is correct only while
each module computes what the kernel computes: its original ``forward``, without hooks. Any other part (an adapter, a
subclass, a patched or hooked module) is called instead.

Parameters are read from the dictionaries of a module: attribute access of ``torch.nn.Module`` runs in Python, and for
all parameters of a model costs as much time as the kernels on a hundred stocks. A value that is not a plain parameter,
such as a parametrized weight, is read through its attribute, once for all time steps. If repeated reads may give
different tensors, the part is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module
from torch.nn.utils import parametrizations

from hiermt._tracing import recorded

# Names of parts with their kinds: a linear with a bias, one without, or a parameter of the module itself.
Parts = tuple[tuple[str, str], ...]
LINEAR, MATRIX, PARAMETER = "linear", "matrix", "parameter"

_MODULE_CALL = nn.Module.__call__
_LINEAR_TYPE, _LINEAR, _PARAMETER = nn.Linear, nn.Linear.forward, nn.Parameter
_WEIGHT, _WEIGHT_AND_BIAS = ["weight"], ["weight", "bias"]
_DISABLED = torch._C._disabled_torch_function_impl
# Parametrizations without randomness and state.
_REPEATABLE = (parametrizations._WeightNorm, parametrizations._Orthogonal)


def runs(module: nn.Module, forward: Any) -> bool:
    """Whether a call of `module` runs the function `forward`, and no hook of the module."""
    return all_run(((module, forward),))


def all_run(pairs: Iterable[tuple[nn.Module, Any]]) -> bool:
    """Whether a call of each module runs the function beside it, and no hook of the module."""
    for module, forward in pairs:
        kind = type(module)
        # A ScriptModule has a forward on the instance only.
        if getattr(kind, "forward", None) is not forward:
            return False
        # torch.export and make_fx replace the call of every module by an equivalent one while they trace.
        if kind.__call__ is not _MODULE_CALL and not (kind.__call__ is nn.Module.__call__ and recorded()):
            return False
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in module.__dict__
        ):
            return False
    return True


def unchanged(module: nn.Module, method: Callable[..., Any]) -> bool:
    """Whether the method of this name of `module` is `method`: neither overridden nor patched."""
    name = method.__name__
    return getattr(type(module), name, None) is method and name not in module.__dict__


def has_global_hook() -> bool:
    """Whether PyTorch has hooks on the calls of all modules."""
    return bool(
        _torch_module._global_forward_hooks
        or _torch_module._global_forward_pre_hooks
        or _torch_module._global_backward_hooks
        or _torch_module._global_backward_pre_hooks
    )


def read(parts: Iterable[tuple[nn.Module, Parts]]) -> list[Tensor] | None:
    """The tensors of the named parts of modules, in order; ``None`` unless each part computes what its kind says."""
    tensors: list[Tensor] = []
    linears = []
    for module, names in parts:
        for name, kind in names:
            owner, wanted = module, [name]
            if kind != PARAMETER:
                owner = module._modules.get(name) or getattr(module, name)
                if type(owner) is not _LINEAR_TYPE and not (runs(owner, _LINEAR) and _reads_as_linear(owner)):
                    return None
                linears.append((owner, _LINEAR))
                wanted = _WEIGHT_AND_BIAS if kind == LINEAR else _WEIGHT
                if kind == MATRIX and owner._parameters.get("bias", owner) is not None and owner.bias is not None:
                    return None
            for one in wanted:
                found: Tensor | None = owner._parameters.get(one)
                if type(found) is not _PARAMETER:
                    found = _parameter(owner, one)
                    if found is None:
                        return None
                tensors.append(found)
    return tensors if all_run(linears) else None


def reset(*modules: Any) -> None:
    """Draws the parameters of modules anew, in the order in which their constructor makes them.

    Raises:
        TypeError: one of them, put in place of another by the user, cannot.
    """
    for module in modules:
        if not callable(getattr(module, "reset_parameters", None)):
            raise TypeError(f"reset_parameters: a {type(module).__name__} has no reset_parameters")
    for module in modules:
        module.reset_parameters()


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    """``module.<name>``; ``None`` if it is, or if a second read may give another tensor."""
    found = module._parameters.get(name)
    if found is None:
        if not _repeatable(module, name):
            return None
        found = getattr(module, name)
    kind: Any = type(found)
    # Other subclasses of Tensor may override functions of torch such as ``linear``.
    plain = kind is _PARAMETER or kind is Tensor or getattr(kind, "__torch_function__", None) is _DISABLED
    return found if plain else None


def _reads_as_linear(module: nn.Module) -> bool:
    """Whether attributes of a subclass of ``torch.nn.Linear`` are its plain or parametrized parameters."""
    kind: Any = type(module)
    return "parametrizations" in module._modules or (
        kind.__getattr__ is nn.Module.__getattr__
        and kind.__getattribute__ is nn.Module.__getattribute__
        and not (hasattr(kind, "weight") or hasattr(kind, "bias"))
    )


def _repeatable(module: nn.Module, name: str) -> bool:
    """Whether repeated reads of ``module.<name>`` give one tensor: its parametrizations have no randomness or state."""
    made: Any = module._modules.get("parametrizations")
    if made is None or name not in made._modules:
        return True
    return all(
        isinstance(one, _REPEATABLE) or (isinstance(one, parametrizations._SpectralNorm) and not one.training)
        for one in made._modules[name]._modules.values()
    )
