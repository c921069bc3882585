"""Runs operators by the CUDA kernels and the host entries on the host (:mod:`simt.program`), one fork per call.

:class:`Simt` redirects every call of ``torch.ops.hiermt`` within it, so that whatever calls an operator runs on the
kernels: :mod:`hiermt.ops` with its gradients, a problem of :mod:`support.problems`. A fault of a kernel ends the fork,
and :class:`SimtFault` carries what it said.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hiermt.graph.csr import by_degree
from simt.program import build
from simt.server import started

ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
# By torch's numbers of them.
DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64]
DTYPES += [torch.complex32, torch.complex64, torch.complex128, torch.bool]
DTYPES += [torch.qint8, torch.quint8, torch.qint32, torch.bfloat16]


class SimtFault(RuntimeError):
    """The harness or a sanitizer ended the process."""


class Result(NamedTuple):
    """Tensors that an operator returned, the kernels it launched, and the most bytes that it had allocated at once."""

    tensors: list[Tensor]
    launches: int
    peak_bytes: int


def send(op: str, arguments: Sequence[Any], environment: dict[str, str] | None = None) -> Result:
    """Runs `op` in a fork of its own with arguments in the order of its schema.

    A tensor is sent with its strides and the bytes of its storage from its first element on, or with the name of the
    file that its storage maps. All tensors count as CUDA tensors, and the schedule of a CSR becomes that of a GPU.
    What the operator allocates starts as NaN bits.

    Raises:
        SimtFault: a detector fired.
        RuntimeError: the operator refused its arguments or returned an error.
    """
    message = io.BytesIO()
    for argument in arguments:
        _pack(message, argument)
    variables = {name: value for name, value in os.environ.items() if name.startswith("HIERMT_SIMT_")}
    variables |= ENVIRONMENT | (environment or {})
    server = started(build(), frozenset(variables.items()))
    code, out, err = server.call(op, message.getvalue())
    if code != 0:
        raise SimtFault(f"{op}: exit {code}: {err.decode(errors='replace')[:4000]}")
    status, launches, peak_bytes = struct.unpack_from("<qqq", out)
    if status != 0:
        raise RuntimeError(out[24:].decode(errors="replace"))
    return Result(_unpack(out, 24), launches, peak_bytes)


def _pack(message: io.BytesIO, value: Any) -> None:
    if value is None:
        message.write(b"n")
    elif isinstance(value, float):
        message.write(struct.pack("<cd", b"d", value))
    elif isinstance(value, int):
        message.write(struct.pack("<cq", b"i", value))
    elif isinstance(value, Tensor):
        storage, offset = value.untyped_storage(), value.storage_offset() * value.element_size()
        file = os.fsencode(storage.filename or "")
        head = [DTYPES.index(value.dtype), value.dim(), *value.shape, *value.stride()]
        head += [True, offset, max(storage.size() - offset, 0), len(file)]
        message.write(struct.pack(f"<c{len(head)}q", b"t", *head))
        message.write(file or _bytes(storage, offset))
    else:
        message.write(struct.pack("<cq", b"l", len(value)))
        if len(value) == 6 and all(one.dtype == torch.int32 for one in value) and value[5].numel():
            value = [*value[:5], by_degree(value[0])]  # the schedule of a CPU
        for one in value:
            _pack(message, one)


def _bytes(storage: torch.UntypedStorage, offset: int) -> bytes:
    raw = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.size(),))  # type: ignore[call-overload]
    return raw[offset:].numpy().tobytes()


def _unpack(reply: bytes, at: int) -> list[Tensor]:
    tensors = []
    while at < len(reply):
        kind, dims = struct.unpack_from("<qq", reply, at)
        shape = struct.unpack_from(f"<{dims}q", reply, at + 16)
        at += 16 + 8 * dims
        tensor = torch.empty(shape, dtype=DTYPES[kind])
        size = tensor.numel() * tensor.element_size()
        if size:
            tensor = torch.frombuffer(bytearray(reply[at : at + size]), dtype=tensor.dtype).reshape(shape)
        tensors.append(tensor)
        at += size
    return tensors


class Simt(TorchDispatchMode):
    """Within it, operators of the namespace ``hiermt`` run in the harness, forward and backward.

    Args:
        environment (dict, optional): of the process: ``HIERMT_SIMT_ORDER``, ``HIERMT_SIMT_SHARED_BYTES``, ...
        tf32 (bool): allow the operators TF32. (default: ``False``)

    ``calls`` lists the operators that ran and the kernels each launched, ``peak_bytes`` the most that each had
    allocated at once, results and workspace.
    """

    def __init__(self, environment: dict[str, str] | None = None, tf32: bool = False) -> None:
        super().__init__()
        self.environment, self.tf32 = environment, tf32
        self.calls: list[tuple[str, int]] = []
        self.peak_bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "hiermt":
            return func(*args, **(kwargs or {}))
        op = func._schema.name.removeprefix("hiermt::")
        given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | (kwargs or {})
        if "tf32" in given:
            given["tf32"] = self.tf32
        values = [given.get(one.name, one.default_value) for one in func._schema.arguments]
        floats = [isinstance(one.type, torch.FloatType) for one in func._schema.arguments]
        values = [float(value) if wide else value for value, wide in zip(values, floats, strict=True)]
        result = send(op, values, self.environment)
        self.calls.append((op, result.launches))
        self.peak_bytes.append(result.peak_bytes)
        returns = func._schema.returns
        if len(returns) > 1:
            return tuple(result.tensors)
        return result.tensors if isinstance(returns[0].type, torch.ListType) else result.tensors[0]
