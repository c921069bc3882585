"""Finds the random generators and plain values inside objects, with the path to each."""

from __future__ import annotations

import functools
import hashlib
import io
import marshal
import pickle
import random
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiermt.data import WindowDataset, WindowLoader
from hiermt.graph import Graph
from hiermt.training.encoding import SCALARS, checksum, encode, has_known_factory, is_generator, is_single

_ABSENT = object()
_EXACT = frozenset(SCALARS)
_ROWS = frozenset((list, tuple, set, frozenset, deque, torch.Size))
SAME = "the same as "
_IN_NUMPY = frozenset((torch.float32, torch.float64, torch.int64, torch.int32, torch.bool))
_DEPTH = 16
# Attributes of a running pass, which torch recreates or the training loop sets.
_PASSING = {"_iterator", "training", "_DataLoader__initialized", "_IterableDataset_len_called"}
_FOREIGN = (
    *("logging", "threading", "multiprocessing", "pathlib", "inspect", "typing", "pandas", "pyarrow"),
    *("torch.distributed", "torch._C", "torch._dynamo", "torch._inductor", "torch.fx"),
    *("torch_geometric.data.data", "torch_geometric.data.hetero_data", "torch_geometric.data.batch"),
    *("torch_geometric.data.storage", "torch_geometric.inspector"),
)
_OPTIMIZER = {"state", "param_groups", "defaults"}  # part of its state_dict
_MODULE_PARTS = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


class Place:
    """Location of a value: its owner, and how to replace it."""

    def __init__(self, owner: Any, how: str, key: Any, value: Any, kind: str) -> None:
        self.owner, self.how, self.key, self.value, self.kind = owner, how, key, value, kind

    def put(self, value: Any) -> None:
        if self.how == "item":
            self.owner[self.key] = value
        elif self.how == "cell":
            self.owner.cell_contents = value
        elif isinstance(self.owner, functools.partial):
            parts = {"func": self.owner.func, "args": self.owner.args, "keywords": self.owner.keywords}
            parts[self.key] = value
            self.owner.__setstate__((*parts.values(), vars(self.owner)))  # type: ignore[attr-defined]
        else:
            # A DataLoader rejects normal assignment.
            object.__setattr__(self.owner, self.key, value)

    def mark(self) -> Any:
        """A digest that changes if the value changes; ``None`` if it cannot be computed."""
        if self.kind == "opaque":
            return _pickled(self.value)
        # A digest of the numbers: version counters miss some in-place changes.
        if self.kind == "tensor":
            return _numbers(self.value)
        if self.kind == "array":
            return _digest(self.value)
        if isinstance(self.value, SCALARS):
            return f"{type(self.value).__name__} {self.value!r}"
        try:
            # Fast path for built-in types; marshal version 0 ignores object identity.
            return hashlib.blake2b(marshal.dumps(self.value, 0), digest_size=16).digest()
        except ValueError:
            return checksum(encode(self.value))


class Walk:
    """Visits each object below some roots once.

    Attributes:
        places (dict): random generators, values and objects with a ``state_dict``, by path.
        nodes (dict): objects whose parts were visited, by path.
        labels (dict): type of each of these, or the path of an object that was visited before.

    Args:
        roots (dict): the objects by name.
    """

    def __init__(self, roots: dict[str, Any]) -> None:
        self.places: dict[str, Place] = {}
        self.nodes: dict[str, Place] = {}
        self.labels: dict[str, str] = {}
        self.seen = {id(root): name for name, root in roots.items()}
        modules = [root for root in roots.values() if isinstance(root, nn.Module)]
        # Stored elsewhere: the global generators and the contents of a state_dict.
        self.apart = {id(random._inst), id(np.random.mtrand._rand), id(torch.default_generator)}
        self.kept: list[Any] = []  # keeps every id unique during the walk
        for module in modules:
            # A module may make some of these values for this one call.
            self.kept += module.state_dict(keep_vars=True).values()
        self.apart |= set(map(id, self.kept))
        for name, root in roots.items():
            place = Place(None, "root", None, root, "")
            self.enter(place, name, name in ("model", "criterion"), isinstance(root, torch.utils.data.Dataset), 0)

    def enter(self, place: Place, path: str, module: bool, data: bool, depth: int) -> None:
        """Visits the parts of a value. Inside `data`, only generators and numbers are collected, not contents."""
        value = place.value
        data = data or isinstance(value, torch.utils.data.Dataset | WindowDataset | Graph)
        if not depth and not isinstance(value, nn.Module | torch.optim.Optimizer) and is_stateful(value):
            place.kind = "stateful"
            self.places[path] = place
            return
        self.nodes[path], self.labels[path] = place, _label(value)
        empty = True
        for how, owner, key, child in _children(value):
            empty = False
            if isinstance(value, torch.optim.Optimizer) and key in _OPTIMIZER:
                continue
            if how == "attribute" and (key in _PASSING or _wraps(value, key, child)):
                continue
            name = f"{path}[{key!r}]" if how == "item" else f"{path}.{key}"
            self.visit(
                Place(owner, how, key, child, ""), name, module, data or key in ("dataset", "data_source"), depth
            )
        if isinstance(value, torch.optim.Optimizer):
            # Parameters outside of model and criterion, which are in no state_dict.
            for number, group in enumerate(value.param_groups):
                for index, parameter in enumerate(group["params"]):
                    where = Place(group["params"], "item", index, parameter, "")
                    self.visit(where, f"{path}.param_groups[{number}]['params'][{index}]", module, False, depth)
        elif empty and not data and not of_callback(path) and not hasattr(value, "__dict__") and not _named(value):
            place.kind = "opaque"
            self.places[path] = place

    def visit(self, place: Place, path: str, module: bool, data: bool, depth: int) -> None:
        value = place.value
        loose = of_callback(path)
        if type(value) in _EXACT:
            if loose:
                return
            if not data or (type(value) in (bool, int, float) and place.how == "attribute"):
                place.kind = "value"
                self.places[path] = place
            return
        if id(value) in self.apart:
            return
        known = self.seen.get(id(value))
        # Python may share equal constants.
        if known is None and not isinstance(value, tuple):
            self.seen[id(value)] = path
            self.kept.append(value)
        if isinstance(value, Tensor):
            if data or loose:
                return
            place.kind = "tensor"
        elif isinstance(value, np.ndarray):
            if data or loose or value.dtype.hasobject or isinstance(value, np.memmap):
                return
            place.kind = "array"
        elif known is not None:
            if not data and not _named(value) and not is_single(value):
                self.nodes[path], self.labels[path] = place, f"{SAME}{known}"
            return
        elif is_generator(value):
            place.kind = "generator"
        elif self.plain(value):
            if loose or (data and not (isinstance(value, bool | int | float) and place.how == "attribute")):
                return
            place.kind = "value"
        elif is_iterator(value) and not isinstance(value, io.IOBase):
            if loose:
                return
            raise TypeError(
                f"{path}: a {type(value).__name__}, an iterator whose position cannot be stored; keep the iterable, "
                "and make the iterator in __iter__"
            )
        elif isinstance(value, type):
            self.nodes[path], self.labels[path] = place, _label(value)
            return
        elif type(value).__module__.partition(".")[0] == "pandas" and not data and not loose:
            place.kind = "opaque"
        elif _foreign(value) or depth > _DEPTH:
            return
        elif loose and isinstance(value, torch.optim.lr_scheduler.LRScheduler):
            place.kind = "stateful"
        elif (is_stateful(value) and not isinstance(value, nn.Module)) or (isinstance(value, nn.Module) and not module):
            place.kind = "stateful"
            self.labels[path] = _label(value)
        else:
            self.enter(place, path, module, data, depth + 1)
            return
        self.places[path] = place

    def plain(self, value: Any, depth: int = 0) -> bool:
        """Whether it consists of scalars and containers only and can be stored as one value."""
        if is_single(value):
            return True
        if depth > _DEPTH:
            return False
        if isinstance(value, Tensor):
            return depth > 0 and id(value) not in self.apart and not value.requires_grad
        if type(value) is defaultdict and not has_known_factory(value):
            return False
        if type(value) in (dict, OrderedDict, Counter, defaultdict):
            keys: Any = value
            return all(type(key) in _EXACT or self.plain(key, depth + 1) for key in keys) and self.plain(
                list(value.values()), depth
            )
        if type(value) in _ROWS or (isinstance(value, tuple) and hasattr(value, "_fields")):
            if set(map(type, value)) <= _EXACT:  # fast path for long lists of numbers
                return True
            return all(self.plain(item, depth + 1) for item in value)
        return False


def _children(value: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Kind of access, owner, key and value of each part of `value`."""
    # Bypasses overrides of subclasses, such as an __iter__ with side effects.
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
        yield from (("attribute", value, name, child) for name, child in vars(value).items())
    elif isinstance(value, nn.Module):
        buffers = sorted(value._non_persistent_buffers_set)
        yield from (("item", value._buffers, name, value._buffers[name]) for name in buffers)
        yield from (("item", value._modules, name, child) for name, child in value._modules.items())
        for name, child in vars(value).items():
            if "_hooks" in name:
                yield from _hooks(value, name, child)
            elif name not in _MODULE_PARTS:
                yield "attribute", value, name, child
    else:
        for name, child in list(getattr(value, "__dict__", {}).items()):
            if isinstance(value, torch.optim.Optimizer) and "_hooks" in name:
                yield from _hooks(value, name, child)
            else:
                yield "attribute", value, name, child
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                filled = getattr(value, str(slot), _ABSENT)
                if slot not in ("__dict__", "__weakref__") and filled is not _ABSENT:
                    yield "attribute", value, slot, filled


def _hooks(owner: Any, name: str, hooks: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Hooks by their order: their keys depend on all hooks of a process."""
    for i, hook in enumerate(hooks.values() if isinstance(hooks, dict) else ()):
        yield "part", owner, f"{name}.{i}", hook


def _label(value: Any) -> str:
    """Type, name or length of a value, without its contents."""
    if isinstance(value, types.FunctionType):
        return f"the function {value.__module__}.{value.__qualname__} of line {value.__code__.co_firstlineno}"
    if _named(value):
        return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', type(value).__name__)}"
    size = f" of {len(value)}" if isinstance(value, list | tuple | deque) else ""
    return f"a {type(value).__module__}.{type(value).__qualname__}{size}"


def _named(value: Any) -> bool:
    """Whether a value is identified by its name."""
    return isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | types.MethodType | np.ufunc)


def _numbers(tensor: Tensor) -> Any:
    if tensor.layout is torch.strided and tensor.dtype in _IN_NUMPY:
        return tensor.dtype, _digest(tensor.detach().cpu().numpy())
    return tensor.dtype, checksum(tensor)


def _digest(array: Any) -> tuple[Any, ...]:
    return array.dtype, array.shape, hashlib.blake2b(array.tobytes(), digest_size=16).digest()


def _pickled(value: Any) -> str | None:
    try:
        return hashlib.blake2b(pickle.dumps(value), digest_size=16).hexdigest()
    except Exception:  # locks, sockets and the like raise different types
        return None


def of_callback(path: str) -> bool:
    """Whether a path is inside the callback; there only generators and objects with a state are stored."""
    return path.startswith(("callback.", "callback["))


def is_iterator(value: Any) -> bool:
    """Whether it supports one pass only. A user-defined ``__iter__`` may start anew."""
    anew = isinstance(getattr(type(value), "__iter__", None), types.FunctionType)
    ends = isinstance(value, torch.utils.data.dataloader._BaseDataLoaderIter)
    return isinstance(value, Iterator) and (ends or not anew)


def is_stateful(value: Any) -> bool:
    """Whether a value has a ``state_dict`` and a ``load_state_dict``."""
    if isinstance(value, WindowLoader | torch.optim.lr_scheduler.LRScheduler | type):
        return False  # visited instead: their state_dict omits parts
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def _foreign(value: Any) -> bool:
    """Whether it does not affect a training, or is stored elsewhere."""
    if isinstance(value, types.ModuleType):
        return True
    return type(value).__module__.startswith(_FOREIGN)


def _wraps(owner: Any, key: Any, value: Any) -> bool:
    """Whether it is a method that was replaced on one object, for example by a wrapper that counts calls."""
    if isinstance(owner, nn.Module) and key == "forward":  # part of the computation, with its state
        return False
    return callable(value) and callable(getattr(type(owner), str(key), None))
