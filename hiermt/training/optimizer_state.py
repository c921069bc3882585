"""Stores and restores the state of any torch optimiser bitwise equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hiermt.training.encoding import decode, encode
from hiermt.training.snapshot import Change


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The ``state_dict`` of an optimiser, and the shape and ``requires_grad`` of its parameters."""
    parameters = _parameters(optimizer)
    return {
        "state_dict": encode(optimizer.state_dict(), "optimizer"),
        "shapes": [list(parameter.shape) for parameter in parameters],
        "requires_grad": [parameter.requires_grad for parameter in parameters],
    }


def check_optimizer(kind: str, stored: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Raises ``ValueError`` if a stored state belongs to another optimiser or is damaged."""
    name = type(optimizer).__name__
    if kind != name:
        raise ValueError(f"was written with the optimizer {kind}, this is {name}")
    state = stored.get("state_dict")
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        raise ValueError("damaged: the state of the optimizer is missing")
    groups = state.get("param_groups")
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    ):
        raise ValueError("damaged: the param_groups of the optimizer are missing")
    sizes, own = [len(group["params"]) for group in groups], [len(group["params"]) for group in optimizer.param_groups]
    if sizes != own:
        raise ValueError(f"its optimizer holds {sizes} parameters in its groups, this one {own}")
    parameters = _parameters(optimizer)
    shapes, frozen = stored.get("shapes"), stored.get("requires_grad")
    for index, parameter in enumerate(parameters):
        if not isinstance(shapes, list) or len(shapes) != len(parameters) or shapes[index] != list(parameter.shape):
            shape = shapes[index] if isinstance(shapes, list) and index < len(shapes) else "none"
            raise ValueError(f"its parameter {index} has shape {shape}, that of the optimizer {list(parameter.shape)}")
    if not isinstance(frozen, list) or [type(each) for each in frozen] != [bool] * len(parameters):
        raise ValueError("damaged: requires_grad of the parameters is missing")
    identities = [identity for group in groups for identity in group["params"]]
    foreign = [key for key in state["state"] if key not in identities]
    if foreign or len(set(identities)) != len(identities):
        raise ValueError(f"damaged: the optimizer has states of unknown parameters {foreign}")
    for number, (group, known) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        missing = [key for key in optimizer.defaults if key in known and key not in group]
        if missing:
            raise ValueError(f"damaged: group {number} of the optimizer has no {', '.join(missing)}")


def optimizer_change(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> Change:
    """Functions that load a state checked by :func:`check_optimizer`, and that undo it."""
    before = dict(vars(optimizer))
    parameters = _parameters(optimizer)
    trained = [parameter.requires_grad for parameter in parameters]
    state = decode(stored["state_dict"])

    def load() -> None:
        own = [dict(group) for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        _exactly(optimizer, state, own)
        for parameter, flag in zip(parameters, stored["requires_grad"], strict=True):
            parameter.requires_grad_(flag)

    def undo() -> None:
        # load_state_dict replaces the attributes; it does not write into the old ones.
        vars(optimizer).update(before)
        for parameter, flag in zip(parameters, trained, strict=True):
            parameter.requires_grad_(flag)

    return load, undo


def _exactly(optimizer: torch.optim.Optimizer, state: dict[str, Any], before: list[dict[str, Any]]) -> None:
    """Restores stored dtypes and devices, because ``load_state_dict`` casts to those of the parameter."""
    identities = [identity for group in state["param_groups"] for identity in group["params"]]
    for identity, parameter in zip(identities, _parameters(optimizer), strict=True):
        for key, value in state["state"].get(identity, {}).items():
            loaded = optimizer.state[parameter][key]
            if isinstance(value, Tensor) and loaded.dtype != value.dtype:
                optimizer.state[parameter][key] = value.to(loaded.device)
    for group, old in zip(optimizer.param_groups, before, strict=True):
        for key, value in group.items():
            if key != "params" and isinstance(value, Tensor) and isinstance(old.get(key), Tensor):
                group[key] = value.to(old[key].device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
