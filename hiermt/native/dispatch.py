"""Choice of the implementation: native operators or their pure-PyTorch twins."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from hiermt import reference
from hiermt.native import extension

BACKENDS = ("auto", "native", "reference")


def check(backend: str) -> str:
    """Returns `backend`; raises ``ValueError`` unless it is one of :data:`BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


def native(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the native operators run for `backend` on `device` in `dtype`.

    ``HIERMT_BACKEND`` replaces ``"auto"``.

    Raises:
        RuntimeError: `backend` is ``"native"`` and cannot run; the message says why.
    """
    if backend == "auto":
        backend = os.environ.get("HIERMT_BACKEND") or "auto"
    if backend == "reference":
        return False
    if backend not in ("auto", "native"):
        check(backend)
    reason = extension.why_not_native(device.type)
    if reason is None and device.type == "cuda" and not torch.compiler.is_compiling():
        reason = extension.why_not_gpu(device.index)
    if reason is None and device.type == "cpu" and dtype == torch.float16:
        reason = "the CPU kernels support float32, float64 and bfloat16, not float16"
    if reason is None and transformed():
        reason = (
            "torch.func (grad, vmap, jvp, ...) or forward-mode differentiation (torch.autograd.forward_ad) transforms "
            "the call, which only PyTorch operators support"
        )
    if reason is not None and backend == "native":
        raise RuntimeError(
            f"backend 'native' cannot run on {device.type}: {reason}; "
            "use backend='reference', the PyTorch twin, or backend='auto', which falls back to it"
        )
    return reason is None


def transformed() -> bool:
    """Whether ``torch.func`` transforms the call, or forward-mode differentiation is on; never under a compiler."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def operator(name: str, use_native: bool) -> Callable[..., Any]:
    """The operator `name`, native or twin."""
    if not use_native:
        return getattr(reference, name)  # type: ignore[no-any-return]
    # Imported on demand: without the extension the import raises.
    import hiermt.ops as ops

    return getattr(ops, name)  # type: ignore[no-any-return]
