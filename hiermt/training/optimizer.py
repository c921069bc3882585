"""The optimiser of a training: a fast Adam, and which optimisers the training loop supports."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


def adam(model: nn.Module, lr: float | Tensor = 1e-3, **options: Any) -> torch.optim.Adam:
    """Adam over the parameters of a model: fused where torch supports it, capturable on a GPU.

    Args:
        model (Module): already on its device.
        lr (float or Tensor): learning rate. Captured steps read a tensor on the GPU anew in each replay, so that a
            scheduler does not trigger a new capture. (default: ``1e-3``)
        options: passed on to ``torch.optim.Adam``.
    """
    parameters = list(model.parameters())
    if any(parameter.is_cuda for parameter in parameters):
        options.setdefault("capturable", True)
    if "foreach" in options or "fused" in options:
        return torch.optim.Adam(parameters, lr=lr, **options)
    try:
        return torch.optim.Adam(parameters, lr=lr, fused=True, **options)
    except RuntimeError:  # no fused kernel for this device or dtype
        return torch.optim.Adam(parameters, lr=lr, **options)


def check_closure(optimizer: torch.optim.Optimizer) -> None:
    """Rejects optimisers that evaluate the loss themselves, such as LBFGS.

    Raises:
        ValueError: its ``step`` needs a closure.
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer: {type(optimizer).__name__} needs a closure that computes the loss again, which this loop does "
            "not provide; use an optimiser whose step() needs no closure, such as Adam"
        )
