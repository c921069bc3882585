"""Choices made from bytes, so that a fuzzer that mutates bytes mutates choices, and what it found can be repeated."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Source:
    """Bytes that are consumed from the front; zeros when there are none left."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def pick(self, among: Sequence[T]) -> T:
        value = self.byte() if len(among) <= 256 else 256 * self.byte() + self.byte()
        return among[value % len(among)]

    def rest(self) -> bytes:
        return self.data[self.at :]


# Values that take the place of another: of every type, at the ends of every range.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, -(2**31), 2**63, -(2**63) - 1, 2**70, 10**9),
    *(0.5, -0.0, math.inf, -math.inf, math.nan, 1e300, "", "x", "NTF", "a\ud800", "\0", "9" * 5000, "2024-01-31"),
    *([], [1], ["a", "b"], {}, {"a": 1}, {"signal": 10**9}, (), (1, 2)),
)


def json_value(value: Any) -> Any:
    """Of the values those that JSON has."""
    return list(value) if isinstance(value, tuple) else value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Each branch and leaf; of long lists the first, one in between, and the last."""
    found = [path] if path else []
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list | tuple):
        keys = sorted({0, len(value) // 2, len(value) - 1}) if value else []
    for key in keys:
        found += places(value[key], (*path, key))
    return found


def mutated(value: Any, source: Source, extra: Sequence[Any] = ()) -> Any:
    """A copy with a few of its branches or leaves removed, replaced or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(1 + source.byte() % 3):
        paths = places(value)
        if not paths:
            return value
        path, kind = source.pick(paths), source.byte() % 6
        if kind == 0:
            value = _with(value, path, _GONE)
        elif kind == 1:
            other = source.pick(paths)
            value = _with(value, path, copy.deepcopy(_at(value, other)))
        elif kind == 2:
            value = _with(value, path, _changed(_at(value, path), source))
        else:
            value = _with(value, path, copy.deepcopy(source.pick((*extra, *_VALUES))))
    return value


_GONE = object()


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with `new` at the end of `path`; removes or renames a key for :data:`_GONE`."""
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        changed = {**value, key: _with(value[key], rest, new) if rest else new}
        return {k: v for k, v in changed.items() if v is not _GONE}
    items = list(value)
    items[key] = _with(items[key], rest, new) if rest else new
    kept = [item for item in items if item is not _GONE]
    return kept if isinstance(value, list) else tuple(kept)


def _changed(value: Any, source: Source) -> Any:
    """Something like `value`."""
    kind = source.byte()
    if isinstance(value, Tensor):
        # An earlier change may have made it larger than any memory.
        numbers = value.detach()[:1, :1].clone() if value.numel() > 2**24 else value.detach().clone()
        changes = (
            lambda: numbers.flatten()[: numbers.numel() // 2].clone(),
            lambda: numbers.unsqueeze(0),
            lambda: numbers.to(torch.float64 if numbers.dtype != torch.float64 else torch.float32),
            lambda: numbers.to(torch.uint8),
            lambda: torch.full_like(numbers, kind),
            lambda: torch.zeros(1).expand(2**20, 2**20),
            lambda: numbers.new_empty(0),
        )
        return changes[kind % len(changes)]()
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + (kind - 128)
    if isinstance(value, float):
        return value * (kind - 128)
    if isinstance(value, str):
        return (value[:-1], value + "x", value.upper(), value[::-1], value * 3)[kind % 5]
    if isinstance(value, list | tuple):
        return (value[:-1], value + value, value[::-1])[kind % 3]
    if isinstance(value, dict):
        return {**value, source.pick(["x", 1, None, *value]): source.pick(_VALUES)}
    return value
