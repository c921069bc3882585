"""Global random state of a process: torch (CPU and every GPU), numpy and Python."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiermt.training.encoding import decode, encode, numpy_state


def random_state() -> dict[str, Any]:
    """The encoded state of all global generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "cpu": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": encode(np.random.mtrand._rand.get_state(legacy=False)),
        "python": encode(random.getstate()),
    }


def check_random_state(state: dict[str, Any]) -> None:
    """Raises if :func:`set_random_state` would; changes nothing."""
    torch.Generator(device="cpu").set_state(state["cpu"])
    for each in state["cuda"]:
        if not isinstance(each, Tensor) or each.dtype != torch.uint8:
            raise ValueError("the state of a GPU's random generator is a tensor of bytes")
    np.random.RandomState().set_state(numpy_state(state["numpy"]))
    random.Random().setstate(decode(state["python"]))


def set_random_state(state: dict[str, Any]) -> None:
    """Restores :func:`random_state`; that of GPUs only if the number of GPUs is the same."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.mtrand._rand.set_state(numpy_state(state["numpy"]))
    random.setstate(decode(state["python"]))
