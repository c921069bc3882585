"""Detects losses and parameters that are no longer finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def finite_weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The trained parameters that are finite at the start of a training and must stay finite."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ready = [each for each in parameters if not nn.parameter.is_lazy(each) and each.is_floating_point()]
    return [each for each in ready if bool(each.detach().isfinite().all())]


def largest_weight(weights: list[Tensor], device: torch.device | str) -> Tensor:
    """Largest absolute value, ``[1]`` float64 on `device`; NaN if a weight is NaN, 0 without weights."""
    if not weights:
        return torch.zeros(1, dtype=torch.float64, device=device)
    norm = nn.utils.get_total_norm([weight.detach() for weight in weights], norm_type=math.inf)
    return norm.to(device, torch.float64).reshape(1)


def divergence(epoch: int, metrics: dict[str, float], largest: float) -> str | None:
    """Error message if a total loss or the largest weight of an epoch is not finite, else ``None``."""
    reason = None if math.isfinite(largest) else "a parameter of the model is no longer finite"
    for part in ("train", "test"):
        loss = metrics.get(f"{part}_total_loss", 0.0)
        if not math.isfinite(loss):
            reason = f"the {part} loss is {loss}"
            break
    return reason and (
        f"epoch {epoch}: {reason}; the training stops, and a checkpoint keeps the state of an earlier epoch. Lower the "
        "learning rate, or check the data for NaN and infinity"
    )
