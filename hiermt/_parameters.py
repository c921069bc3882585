"""Parameters of modules, read from their dictionaries.

``module.lin.weight`` runs through Python twice; for all parameters of a model that takes as long as its kernels on a
hundred stocks. What is no plain parameter, such as a parametrized weight, is read as ever.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def parameter(module: nn.Module, name: str) -> Tensor:
    """``module.<name>``"""
    found = None if torch.compiler.is_compiling() else module._parameters.get(name)
    return getattr(module, name) if found is None else found


def submodule(module: nn.Module, name: str) -> nn.Module:
    """``module.<name>``"""
    found = None if torch.compiler.is_compiling() else module._modules.get(name)
    return getattr(module, name) if found is None else found


def linear(module: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``module.<name>``."""
    found = submodule(module, name)
    if not torch.compiler.is_compiling():
        weight, bias = found._parameters.get("weight"), found._parameters.get("bias")
        if weight is not None and bias is not None:
            return weight, bias
    return found.weight, found.bias  # type: ignore[return-value]
