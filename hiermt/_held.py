"""What loaders, samplers, schedulers and modules hold outside any ``state_dict``: random generators, and plain values.

A value is stored only where it is no longer what it was when the training began. So a training that goes on keeps what
its caller changed on purpose, such as a path, and gets back what the training itself had changed.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiermt._plain import (
    SCALARS,
    decode,
    encode,
    generator_state,
    new_generator,
    set_generator_state,
)
from hiermt._walk import Place, Walk

Change = tuple[Callable[[], None], Callable[[], None]]

_ABSENT = object()


class Held:
    """The generators and plain values below some objects.

    Args:
        roots: the objects by name; paths in messages begin with it.
    """

    def __init__(self, roots: dict[str, Any]) -> None:
        self.roots = {name: root for name, root in roots.items() if root is not None}
        places = self._places()
        self.marks = {path: place.mark() for path, place in places.items() if _plain(place)}
        self.generators = {path for path, place in places.items() if place.kind == "generator"}

    def types(self) -> dict[str, str]:
        """The class of each root."""
        return {name: _type(root) for name, root in self.roots.items()}

    def state(self, *, unchanged: bool = False) -> dict[str, dict[str, Any]]:
        """What to store, by path; with `unchanged` the values that are what they were as well.

        Raises:
            TypeError: something cannot be stored; the message says what and why.
        """
        found = {}
        for path, place in self._places().items():
            if _plain(place):
                mark = self.marks.get(path)
                if not unchanged and mark is not None and _same(mark, place.mark()):
                    continue
                value = encode(place.value, path)
            elif place.kind == "generator":
                try:
                    value = generator_state(place.value)
                except TypeError as error:
                    raise TypeError(f"{path}: {error}") from None
            else:
                value = encode(place.value.state_dict(), path)
            found[path] = {
                "kind": place.kind,
                "how": place.how,
                "key": place.key if isinstance(place.key, SCALARS) else None,
                "new": path not in self.marks and path not in self.generators,
                "value": value,
            }
        return found

    def plan(self, state: dict[str, dict[str, Any]]) -> list[Change]:
        """Pairs of functions that put each value of `state` where it was, and take it back.

        Raises:
            ValueError: a value has no place here, or does not fit the one it has.
        """
        places, nodes = self._places_and_nodes()
        for path in self.generators - set(state):
            raise ValueError(f"{path}: a random generator, of which nothing is stored")
        return [self._plan(path, entry, places.get(path), nodes) for path, entry in state.items()]

    def _plan(self, path: str, entry: dict[str, Any], place: Place | None, nodes: dict[str, Any]) -> Change:
        kind, value = entry["kind"], entry["value"]
        if kind == "stateful":
            if place is None or place.kind != kind:
                raise ValueError(f"{path}: the state of an object is stored, but there is none with a load_state_dict")
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
            raise ValueError(f"{path}: a {type(place.value).__name__}, of which no state is stored")
        loaded = new_generator(value) if kind == "generator" else decode(value)
        if place is not None and (place.value is None or kind == place.kind):
            return _change(place, loaded)
        parent = nodes.get(_parent(path), _ABSENT)
        if not entry["new"] or parent is _ABSENT or place is not None:
            raise ValueError(f"{path}: a {kind} is stored, but there is no such place")
        return _add(parent, entry["how"], entry["key"], loaded)

    def _places(self) -> dict[str, Place]:
        return self._places_and_nodes()[0]

    def _places_and_nodes(self) -> tuple[dict[str, Place], dict[str, Any]]:
        walk = Walk({id(root) for root in self.roots.values()})
        for name, root in self.roots.items():
            walk.enter(root, name, name in ("model", "criterion"), isinstance(root, torch.utils.data.Dataset))
        return walk.places, walk.nodes


def apply(pairs: list[Change]) -> None:
    """Calls the first function of each pair; where one fails, the second of all."""
    try:
        for act, _ in pairs:
            act()
    except BaseException:
        for _, undo in reversed(pairs):
            undo()
        raise


def _plain(place: Place) -> bool:
    return place.kind in ("value", "tensor", "array")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return one[0] is other[0] and one[1] == other[1]
    return isinstance(one, str) and one == other


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _parent(path: str) -> str:
    return path[: path.rindex("[")] if path.endswith("]") else path.rpartition(".")[0]


def _change(place: Place, value: Any) -> Change:
    """Puts `value` into a place; containers and tensors that others may hold as well are changed in place."""
    old = place.value
    if isinstance(old, Tensor) and isinstance(value, Tensor):
        if not old.requires_grad and old.shape == value.shape and old.dtype == value.dtype:
            before = old.clone()
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
    """Puts `value` where there was nothing yet."""
    if how == "item" and isinstance(parent, nn.Module):
        raise ValueError(f"{key}: a {type(parent).__name__} has no such part")
    if how == "item" and isinstance(parent, dict):
        return functools.partial(parent.__setitem__, key, value), _putter(parent, key)
    if how == "attribute":
        put = functools.partial(object.__setattr__, parent, key, value)
        if hasattr(parent, "__dict__"):
            return put, _putter(vars(parent), key)
        return put, lambda: object.__delattr__(parent, key) if hasattr(parent, key) else None  # a slot
    raise ValueError(f"{key}: there is no place for what is stored")


def _putter(holder: dict[Any, Any], key: Any) -> Callable[[], None]:
    """Puts back what was there, or nothing."""
    if key in holder:
        return functools.partial(holder.__setitem__, key, holder[key])
    return lambda: holder.pop(key, None) and None
