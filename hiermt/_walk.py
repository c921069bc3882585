"""Where objects hold random generators and plain values: a walk over all that lies below them."""

from __future__ import annotations

import functools
import io
import random
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiermt._plain import SCALARS, checksum, encode, is_generator
from hiermt.data import WindowDataset, WindowLoader
from hiermt.graph import Graph

_ABSENT = object()
_EXACT = frozenset(SCALARS)
# Larger arrays are looked at for whether they were replaced, not for their numbers.
_LARGE = 1 << 24
_DEPTH = 16
# Attributes that say where a pass is, not what comes next: torch makes them anew, or the loop sets them.
_PASSING = {"_iterator", "training", "_DataLoader__initialized", "_IterableDataset_len_called"}
_FOREIGN = (
    *("logging", "threading", "multiprocessing", "pathlib", "inspect", "typing", "pandas", "pyarrow"),
    *("torch.distributed", "torch._C", "torch._dynamo", "torch._inductor", "torch.fx"),
    *("torch_geometric.data.data", "torch_geometric.data.hetero_data", "torch_geometric.data.batch"),
    *("torch_geometric.data.storage", "torch_geometric.inspector"),
)
_OPTIMIZER = {"state", "param_groups", "defaults"}  # what its state_dict tells
_MODULE_PARTS = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


class Place:
    """Where a value lies, and how another gets there."""

    def __init__(self, owner: Any, how: str, key: Any, value: Any, kind: str) -> None:
        self.owner, self.how, self.key, self.value, self.kind = owner, how, key, value, kind

    def put(self, value: Any) -> None:
        if self.how == "item":
            self.owner[self.key] = value
        elif self.how == "cell":
            self.owner.cell_contents = value
        else:
            # A DataLoader refuses to be changed; here it becomes what it was.
            object.__setattr__(self.owner, self.key, value)

    def mark(self) -> Any:
        """Equal to that of the same place as long as the value is the same."""
        if self.kind == "tensor":
            return self.value, _version(self.value)
        if self.kind == "array" and self.value.nbytes > _LARGE:
            return self.value, 0
        if isinstance(self.value, SCALARS):
            return f"{type(self.value).__name__} {self.value!r}"
        return checksum(encode(self.value))


class Walk:
    """Collects the places below objects, each object once."""

    def __init__(self, roots: set[int]) -> None:
        self.places: dict[str, Place] = {}
        self.nodes: dict[str, Any] = {}
        # The global generators are stored apart.
        self.seen = {*roots, id(random._inst), id(np.random.mtrand._rand), id(torch.default_generator)}
        self.kept: list[Any] = []  # so that no id is used twice during a walk

    def enter(self, value: Any, path: str, module: bool, data: bool, depth: int = 0) -> None:
        """Visits what `value` holds. Of `data` generators and numbers count, not their contents."""
        data = data or isinstance(value, torch.utils.data.Dataset | WindowDataset | Graph)
        self.nodes[path] = value
        if not depth and not isinstance(value, nn.Module) and _stateful(value):
            self.places[path] = Place(value, "root", None, value, "stateful")
            return
        for how, owner, key, child in _children(value):
            if isinstance(value, torch.optim.Optimizer) and key in _OPTIMIZER:
                continue
            if how == "attribute" and (key in _PASSING or _wraps(value, key, child)):
                continue
            name = f"{path}[{key!r}]" if how == "item" else f"{path}.{key}"
            self.visit(
                Place(owner, how, key, child, ""), name, module, data or key in ("dataset", "data_source"), depth
            )

    def visit(self, place: Place, path: str, module: bool, data: bool, depth: int) -> None:
        value = place.value
        if type(value) in _EXACT:
            if not data or (type(value) in (bool, int, float) and place.how == "attribute"):
                place.kind = "value"
                self.places[path] = place
            return
        # Equal constants may be one object.
        if not isinstance(value, tuple):
            if id(value) in self.seen:
                return
            self.seen.add(id(value))
            self.kept.append(value)
        if is_generator(value):
            place.kind = "generator"
        elif isinstance(value, Tensor):
            if data:
                return
            place.kind = "tensor"
        elif isinstance(value, np.ndarray):
            if data or value.dtype.hasobject or isinstance(value, np.memmap):
                return
            place.kind = "array"
        elif _is_plain(value):
            if data and not (isinstance(value, bool | int | float) and place.how == "attribute"):
                return
            place.kind = "value"
        elif is_iterator(value) and not isinstance(value, io.IOBase):
            raise TypeError(
                f"{path}: a {type(value).__name__}, an iterator whose position cannot be stored; hold what it is made "
                "of, and make the iterator in __iter__"
            )
        elif _foreign(value) or depth > _DEPTH:
            return
        elif (_stateful(value) and not isinstance(value, nn.Module)) or (isinstance(value, nn.Module) and not module):
            place.kind = "stateful"
        else:
            self.enter(value, path, module, data, depth + 1)
            return
        self.places[path] = place


def _children(value: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """How, where and under which key each thing that `value` holds lies in it."""
    # Past what a subclass makes of them, such as an __iter__ that counts.
    if isinstance(value, dict):
        yield from (("item", value, key, child) for key, child in dict.items(value) if isinstance(key, SCALARS))
    containers: tuple[Any, ...] = (list, tuple, deque)
    for container in containers:
        if isinstance(value, container):
            yield from (("item", value, i, child) for i, child in enumerate(container.__iter__(value)))
    if isinstance(value, functools.partial):
        for name, child in (("func", value.func), ("args", value.args), ("keywords", value.keywords)):
            yield "part", value, name, child
    elif isinstance(value, types.MethodType | types.BuiltinFunctionType):
        yield "part", value, "__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        unfilled = types.CellType()
        yield from (("cell", cell, name, cell.cell_contents) for name, cell in cells.items() if cell != unfilled)
        yield from (("part", value, name, getattr(value, name)) for name in ("__defaults__", "__kwdefaults__"))
    elif isinstance(value, nn.Module):
        buffers = sorted(value._non_persistent_buffers_set)
        yield from (("item", value._buffers, name, value._buffers[name]) for name in buffers)
        yield from (("item", value._modules, name, child) for name, child in value._modules.items())
        for name, child in vars(value).items():
            if name not in _MODULE_PARTS and "_hooks" not in name:
                yield "attribute", value, name, child
    else:
        for name, child in list(getattr(value, "__dict__", {}).items()):
            if not (isinstance(value, torch.optim.Optimizer) and "_hooks" in name):
                yield "attribute", value, name, child
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                filled = getattr(value, str(slot), _ABSENT)
                if slot not in ("__dict__", "__weakref__") and filled is not _ABSENT:
                    yield "attribute", value, slot, filled


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether it is made of scalars and containers alone, so that it is stored as one value."""
    if isinstance(value, (*SCALARS, complex, bytes, np.generic, torch.dtype, torch.device)):
        return True
    if depth > _DEPTH:
        return False
    if type(value) in (dict, OrderedDict, Counter, defaultdict):
        return all(isinstance(key, SCALARS) and _is_plain(item, depth + 1) for key, item in value.items())
    if type(value) in (list, tuple, set, frozenset, deque) or isinstance(value, torch.Size):
        if set(map(type, value)) <= _EXACT:  # long lists of numbers, at once
            return True
        return all(isinstance(item, Tensor) or _is_plain(item, depth + 1) for item in value)
    return False


def is_iterator(value: Any) -> bool:
    """Whether it ends once it has been gone through. An object of the user's may start anew in its ``__iter__``."""
    anew = isinstance(getattr(type(value), "__iter__", None), types.FunctionType)
    ends = isinstance(value, torch.utils.data.dataloader._BaseDataLoaderIter)
    return isinstance(value, Iterator) and (ends or not anew)


def _stateful(value: Any) -> bool:
    if isinstance(value, WindowLoader | torch.optim.lr_scheduler.LRScheduler | torch.optim.Optimizer | type):
        return False  # all that these hold is plain, and what is below them is not in their state_dict
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def _foreign(value: Any) -> bool:
    """Whether it is nothing that decides on a training, or is stored elsewhere."""
    if isinstance(value, type | types.ModuleType | torch.optim.Optimizer):
        return True
    return type(value).__module__.startswith(_FOREIGN)


def _wraps(owner: Any, key: Any, value: Any) -> bool:
    """Whether it is a method that was replaced on one object, such as by a wrapper that counts its calls."""
    return callable(value) and callable(getattr(type(owner), str(key), None))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
