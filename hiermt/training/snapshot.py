"""State of loaders, samplers, schedulers and modules outside any ``state_dict``: random generators and plain values.

A value is stored only if it has changed since the training began. So a resumed training keeps the values that its
caller changed on purpose, such as a path, and restores the values that the training itself had changed.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from itertools import filterfalse
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiermt.training.encoding import (
    SCALARS,
    decode,
    encode,
    generator_state,
    new_generator,
    set_generator_state,
)
from hiermt.training.object_walk import SAME, Place, Walk, is_stateful, of_callback

Change = tuple[Callable[[], None], Callable[[], None]]


class Snapshot:
    """Generators and plain values inside some objects, as they are when the snapshot is taken.

    Args:
        roots: the objects by name; paths in messages begin with the name.
    """

    def __init__(self, roots: dict[str, Any]) -> None:
        self.roots = {name: root for name, root in roots.items() if root is not None}
        walk = Walk(self.roots)
        self.marks = {path: place.mark() for path, place in walk.places.items() if _marked(place)}
        self.generators = {path for path, place in walk.places.items() if place.kind == "generator"}
        self.labels = walk.labels

    def types(self) -> dict[str, str]:
        """The class of each root."""
        return {name: _type(root) for name, root in self.roots.items() if name != "callback" or is_stateful(root)}

    def state(self, *, unchanged: bool = False) -> dict[str, dict[str, Any]]:
        """Entries to store, by path: every generator and each value that has changed; with `unchanged`, every value.

        Raises:
            TypeError: a value cannot be stored; the message names it and the reason.
        """
        found, walk = {}, Walk(self.roots)
        for path, label in walk.labels.items():
            # New objects are stored by their contents.
            known = path in self.labels or path in self.marks
            if known and label != self.labels.get(path) and not of_callback(path):
                found[path] = _entry(walk.nodes.get(path) or walk.places[path], "label", label)
        for path, place in walk.places.items():
            if path in found:
                continue
            if _marked(place):
                mark = self.marks.get(path)
                same = mark == place.mark()
                if place.kind == "opaque":
                    if path in self.marks and not same:
                        kind = f"{type(place.value).__module__}.{type(place.value).__qualname__}"
                        raise TypeError(f"{path}: the training has changed it, and a {kind} cannot be stored")
                    continue
                if same and not unchanged:
                    continue
                value = encode(place.value, path)
            elif place.kind == "generator":
                try:
                    value = generator_state(place.value)
                except TypeError as error:
                    raise TypeError(f"{path}: {error}") from None
            else:
                try:
                    value = encode(place.value.state_dict(), path)
                except Exception:
                    if of_callback(path):  # a callback may hold anything, such as a progress bar
                        continue
                    raise
            found[path] = _entry(place, place.kind, value, new=path not in self.marks and path not in self.generators)
        there = {*walk.places, *walk.nodes}
        for path in filterfalse(of_callback, {*self.marks, *self.labels} - there):
            parent = walk.nodes.get(_parent(path))
            if parent is not None and not isinstance(parent.value, list | tuple | deque):
                found[path] = _entry(Place(None, "", None, None, ""), "gone", None)
        return found

    def plan(self, state: dict[str, dict[str, Any]]) -> list[Change]:
        """Pairs of functions that restore each value of `state` and undo it.

        Raises:
            ValueError: the place of a value does not exist, or the value does not fit.
        """
        walk = Walk(self.roots)
        for path in filterfalse(of_callback, self.generators - set(state)):
            raise ValueError(f"{path}: no state is stored for this random generator")
        planned = (self._plan(path, entry, walk) for path, entry in state.items())
        return [change for change in planned if change is not None]

    def _plan(self, path: str, entry: dict[str, Any], walk: Walk) -> Change | None:
        kind, value = entry["kind"], entry["value"]
        place, node = walk.places.get(path), walk.nodes.get(path)
        if of_callback(path) and place is None:  # another callback
            return None
        if kind == "label":
            return _relabel(path, value, walk)
        if kind == "gone":
            there = place or node
            return None if there is None else _remove(there)
        if kind == "stateful":
            if place is None or place.kind != kind:
                raise ValueError(f"{path}: the state of an object is stored, but this object has no load_state_dict")
            stateful, before = place.value, place.value.state_dict()
            return (lambda: stateful.load_state_dict(decode(value))), (lambda: stateful.load_state_dict(before))
        if kind == "generator" and place is not None and place.kind == kind:
            generator, old = place.value, generator_state(place.value)
            new_generator(value)
            if value["kind"] != old["kind"]:
                raise ValueError(f"{path}: the state of a {value['kind']} is stored, but this is a {old['kind']}")
            return (
                functools.partial(set_generator_state, generator, value),
                functools.partial(set_generator_state, generator, old),
            )
        if kind not in ("generator", "value", "tensor", "array"):
            raise ValueError(f"{path}: unknown kind {kind!r}")
        if place is not None and place.kind == "generator":
            raise ValueError(f"{path}: no state is stored for this {type(place.value).__name__}")
        loaded = new_generator(value) if kind == "generator" else decode(value)
        if place is not None:
            return _change(place, loaded)
        if node is not None:
            return functools.partial(node.put, loaded), functools.partial(node.put, node.value)
        parent = walk.nodes.get(_parent(path))
        if not entry["new"] or parent is None:
            raise ValueError(f"{path}: a {kind} is stored, but this path does not exist")
        return _add(parent.value, entry["how"], decode(entry["key"]), loaded)


def apply(pairs: list[Change]) -> None:
    """Calls the first function of each pair; if one fails, undoes all of them."""
    try:
        for act, _ in pairs:
            act()
    except BaseException:
        for _, undo in reversed(pairs):
            undo()
        raise


def _marked(place: Place) -> bool:
    return place.kind in ("value", "tensor", "array", "opaque")


def _entry(place: Place, kind: str, value: Any, *, new: bool = False) -> dict[str, Any]:
    try:
        key = encode(place.key)
    except TypeError:
        key = None
    return {"kind": kind, "how": place.how, "key": key, "new": new, "value": value}


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _parent(path: str) -> str:
    return path[: path.rindex("[")] if path.endswith("]") else path.rpartition(".")[0]


def _relabel(path: str, label: str, walk: Walk) -> Change | None:
    """Restores a reference to another known object, if the state was written with one."""
    found = walk.labels.get(path)
    if found == label:
        return None
    place = walk.nodes.get(path) or walk.places.get(path)
    target = label.removeprefix(SAME)
    other = walk.nodes.get(target) or walk.places.get(target)
    if place is None or other is None or (other.kind == "value" and isinstance(other.value, SCALARS)):
        raise ValueError(
            f"{path}: the training had changed it to {label}, which cannot be stored; here it is "
            f"{found or 'something else'}. Replace it before resuming"
        )
    return functools.partial(place.put, other.value), functools.partial(place.put, place.value)


def _remove(place: Place) -> Change:
    """Removes an entry that the training had removed."""
    if place.how == "item" and isinstance(place.owner, dict):
        return (lambda: place.owner.pop(place.key) and None), functools.partial(place.put, place.value)
    return (lambda: object.__delattr__(place.owner, place.key)), functools.partial(place.put, place.value)


def _change(place: Place, value: Any) -> Change:
    """Puts `value` into a place; containers and tensors are changed in place, because they may be shared."""
    old = place.value
    if isinstance(old, Tensor) and isinstance(value, Tensor):
        alike = (old.shape, old.dtype, old.layout) == (value.shape, value.dtype, torch.strided)
        if alike and (old.is_leaf or not old.requires_grad):
            before = old.detach().clone()
            return (lambda: _copy(old, value)), (lambda: _copy(old, before))
        value = value.to(old.device)
    if type(old) is type(value) and isinstance(old, list | dict | set | deque):
        kept = old.copy()
        return functools.partial(_refill, old, value), functools.partial(_refill, old, kept)
    if isinstance(old, np.ndarray) and isinstance(value, np.ndarray) and _alike(old, value):
        numbers = old.copy()
        return functools.partial(np.copyto, old, value), functools.partial(np.copyto, old, numbers)
    return functools.partial(place.put, value), functools.partial(place.put, old)


def _alike(old: Any, value: Any) -> bool:
    return bool(old.flags.writeable and old.shape == value.shape and old.dtype == value.dtype)


def _copy(target: Tensor, source: Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)


def _refill(container: Any, value: Any) -> None:
    container.clear()
    if isinstance(container, list | deque):
        container.extend(value)
    else:
        container.update(value)


def _add(parent: Any, how: str, key: Any, value: Any) -> Change:
    """Adds `value` as a new entry."""
    if how == "item" and isinstance(parent, nn.Module):
        raise ValueError(f"{key}: a {type(parent).__name__} has no such part")
    if how == "item" and isinstance(parent, dict):
        return functools.partial(parent.__setitem__, key, value), _putter(parent, key)
    if how == "attribute":
        put = functools.partial(object.__setattr__, parent, key, value)
        if hasattr(parent, "__dict__"):
            return put, _putter(vars(parent), key)
        return put, lambda: object.__delattr__(parent, key) if hasattr(parent, key) else None  # a slot
    raise ValueError(f"{key}: the stored value has no place")


def _putter(holder: dict[Any, Any], key: Any) -> Callable[[], None]:
    """Restores the present entry, or its absence."""
    if key in holder:
        return functools.partial(holder.__setitem__, key, holder[key])
    return lambda: holder.pop(key, None) and None
