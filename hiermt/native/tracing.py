"""Whether a call is recorded, and what ``torch.jit`` gets: a refusal that names ``torch.export``."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

_INSTEAD = "use torch.export.export(model, args, dynamic_shapes=...), which leaves sizes open"


def recorded() -> bool:
    """Whether the operations of the call are recorded, so that Python must not ask for a value.

    A compiler and ``torch.export`` record them, and ``make_fx``, on which ``torch.func.linearize`` stands.
    """
    if torch.compiler.is_compiling():
        return True
    if not torch._C._len_torch_dispatch_stack():
        return False
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def refuse_tracing(size: int | Tensor) -> None:
    """Raises inside ``torch.jit.trace``, where sizes are tensors.

    A trace would keep the number of nodes, edges and steps, and what the graph was prepared to, as constants.
    """
    if isinstance(size, Tensor):
        raise NotImplementedError(
            f"torch.jit.trace cannot record hiermt: sizes and edges would become constants without a word; {_INSTEAD}"
        )


class NotScriptable:
    """A module that ``torch.jit.script`` refuses by name, also as a part of another one."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            f"torch.jit.script cannot compile a {type(self).__name__}, which chooses its backend in Python; {_INSTEAD}"
        )
