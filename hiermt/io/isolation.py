"""Running a foreign module without traces: its results, random generators and modes stay as they are."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextlib.contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Gradients on, compilers, autocast and inference mode off; restores the random generators."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    # Importing the compiler takes a second, and nothing is compiled before it is imported.
    compiled = "torch._dynamo" in sys.modules
    eager: Any = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    default: Any = contextlib.nullcontext() if torch.get_default_device() == device else torch.device(device)
    try:
        with (
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            default,
            eager,
        ):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def seed_all(seed: int) -> None:
    """Seeds every generator that a module may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def cached_results(source: nn.Module) -> dict[int, Any]:
    """A memo for ``deepcopy`` with the non-leaf tensors that a module keeps, which it refuses: detached copies."""
    memo: dict[int, Any] = {}

    def visit(value: object, depth: int) -> None:
        if isinstance(value, Tensor):
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        elif isinstance(value, dict) and depth:
            for item in value.values():
                visit(item, depth - 1)
        elif isinstance(value, (list, tuple)) and depth:
            for item in value:
                visit(item, depth - 1)

    for module in source.modules():
        for name, value in vars(module).items():
            if name not in ("_modules", "_parameters"):
                visit(value, 3)
    return memo
