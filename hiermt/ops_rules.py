"""The rules that native operators have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

# Kept alive: a registration ends with the library object that made it.
_library = torch.library.Library("hiermt", "IMPL")  # type: ignore[no-untyped-call]


def register_autocast(name: str) -> None:
    """Lets the operator `name` compute in the dtype of the autocast region it is called in.

    ``torch.library.register_autocast`` wants that dtype at registration; a region may choose float16 or bfloat16.
    float64 is left alone, as by torch's own rules.
    """
    operator = getattr(torch.ops.hiermt, name).default

    for device_type in ("cpu", "cuda"):

        def rule(*args: Any, device_type: str = device_type) -> Any:
            dtype = torch.get_autocast_dtype(device_type)

            def cast(value: Any) -> Any:
                if not isinstance(value, Tensor) or value.device.type != device_type:
                    return value
                narrow = value.is_floating_point() and value.dtype != torch.float64
                return value.to(dtype) if narrow else value

            with torch.autocast(device_type, enabled=False):
                return operator(*tree_map(cast, args))

        _library.impl(name, rule, f"Autocast{device_type.upper()}")  # type: ignore[no-untyped-call]
