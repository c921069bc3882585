"""Detection of tracing, and the refusal of ``torch.jit`` in favour of ``torch.export``."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_INSTEAD = (
    "use torch.export.export(model, args, dynamic_shapes=...), which leaves sizes open, or trace "
    "hiermt.pyg.like(model), which is made of PyTorch Geometric's modules"
)


def recorded() -> bool:
    """Whether the call is traced, so that Python must not read values of tensors.

    By ``torch.compile``, ``torch.export`` or ``make_fx``, which ``torch.func.linearize`` uses.
    """
    if torch.compiler.is_compiling():
        return True
    if not torch._C._len_torch_dispatch_stack():
        return False
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def without_values(tensor: Tensor) -> bool:
    """Whether a tensor has a shape alone: on the meta device, or under ``FakeTensorMode``."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def refuse_tracing(size: int | Tensor) -> None:
    """Raises inside ``torch.jit.trace``, where sizes are tensors: it would store sizes and the CSR as constants."""
    if isinstance(size, Tensor):
        raise NotImplementedError(
            f"torch.jit.trace cannot record hiermt: sizes and edges would silently become constants; {_INSTEAD}"
        )


def refuse_onnx() -> None:
    """Raises inside ``torch.onnx.export``, which would look for an ONNX function of each operator and find none."""
    if torch.onnx.is_in_onnx_export():
        raise NotImplementedError(
            "ONNX has no operators of hiermt; use torch.onnx.export(hiermt.pyg.like(model), args, file, dynamo=False, "
            "dynamic_axes=...)"
        )


class NotScriptable:
    """Makes ``torch.jit.script`` of a module, or of one that contains it, raise by name."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            f"torch.jit.script cannot compile a {type(self).__name__}, which chooses its backend in Python; {_INSTEAD}"
        )
