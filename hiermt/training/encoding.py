"""Encodes Python values so that ``torch.load(weights_only=True)`` can read them, with a checksum.

Decoding makes objects of the listed classes alone, whatever names a file holds: a checksum can be forged.
"""

from __future__ import annotations

import array
import datetime
import enum
import functools
import hashlib
import random
import sys
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

SCALARS = (type(None), bool, int, float, str)
# Marks a dict that encodes a value of another type.
_TAG = "\0hiermt"
# Factories of a defaultdict that can be stored, by name.
_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (int, float, bool, str, list, dict, set)}
# Types with an encoder and a decoder. Subclasses are not included.
_VALUES: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    complex: (lambda value: [value.real, value.imag], lambda stored: complex(*stored)),
    bytes: (bytes.hex, bytes.fromhex),
    bytearray: (bytearray.hex, bytearray.fromhex),
    range: (
        lambda value: [value.start, value.stop, value.step],
        lambda stored: range(*stored),
    ),
    slice: (
        lambda value: [encode(part) for part in (value.start, value.stop, value.step)],
        lambda stored: slice(*map(decode, stored)),
    ),
    Decimal: (str, Decimal),
    Fraction: (
        lambda value: f"{value.numerator}/{value.denominator}",
        # Of a text with an exponent the class computes a power, of any size.
        lambda stored: Fraction(*map(int, stored.split("/"))),
    ),
    datetime.date: (datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.timedelta: (
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda stored: datetime.timedelta(*stored),
    ),
    datetime.timezone: (lambda value: encode(value.utcoffset(None)), lambda stored: datetime.timezone(decode(stored))),
    zoneinfo.ZoneInfo: (str, zoneinfo.ZoneInfo),
    datetime.datetime: (
        lambda value: [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, encode(value.tzinfo)],
        lambda stored: datetime.datetime.fromisoformat(stored[0]).replace(fold=stored[1], tzinfo=decode(stored[2])),
    ),
    array.array: (
        lambda value: [value.typecode, value.tobytes().hex()],
        lambda stored: array.array(stored[0], bytes.fromhex(stored[1])),
    ),
    torch.dtype: (lambda value: str(value).removeprefix("torch."), lambda stored: _dtype(stored)),
    torch.device: (str, torch.device),
}
_PANDAS = ("Timestamp", "Timedelta")
_BIT_GENERATORS = {
    f"numpy.random.{kind}": getattr(np.random, kind) for kind in ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
}
# Counters of numpy's generators and the largest that a sound state has: numpy reads memory at any other.
_POSITIONS = {"pos": 624, "buffer_pos": 4}
_BY_NAME = {f"{kind.__module__}.{kind.__qualname__}": made for kind, (_, made) in _VALUES.items()}


def is_single(value: object) -> bool:
    """Whether :func:`encode` accepts `value` and it has no parts."""
    kind: Any = type(value)
    return _is_single(kind)


@functools.lru_cache(4096)
def _is_single(kind: type) -> bool:
    return kind in _VALUES or issubclass(kind, (*SCALARS, np.generic, torch.device, enum.Enum)) or _of_pandas(kind)


def has_known_factory(value: defaultdict[Any, Any]) -> bool:
    """Whether a ``defaultdict`` can be written: without a factory, or with one that has a name in the file."""
    return value.default_factory is None or value.default_factory in _FACTORIES.values()


def _of_pandas(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "pandas" and kind.__name__ in _PANDAS


def _class_name(value: object) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _class(name: str) -> Any:
    """The class of that name in a module that is already imported."""
    module, _, path = name.partition(":")
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = getattr(found, part) if part != "<locals>" else None
    return found


def is_generator(value: object) -> bool:
    """Whether `value` is a random generator with its own state."""
    return isinstance(
        value, torch.Generator | random.Random | np.random.Generator | np.random.RandomState | np.random.BitGenerator
    )


def generator_state(generator: Any) -> dict[str, Any]:
    """Kind and state of a random generator, encoded.

    Raises:
        TypeError: it has no state, such as ``random.SystemRandom``.
    """
    if isinstance(generator, torch.Generator):
        return {"kind": "torch.Generator", "device": str(generator.device), "state": generator.get_state()}
    if isinstance(generator, random.SystemRandom):
        raise TypeError("random.SystemRandom has no state")
    if isinstance(generator, random.Random):
        return {"kind": "random.Random", "state": encode(generator.getstate())}
    if isinstance(generator, np.random.RandomState):
        return {"kind": "numpy.random.RandomState", "state": encode(generator.get_state(legacy=False))}
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return {"kind": f"numpy.random.{type(bits).__name__}", "state": encode(bits.state)}


def set_generator_state(generator: Any, state: dict[str, Any]) -> None:
    """Sets a generator to a state of :func:`generator_state` of the same kind."""
    kind = generator_state(generator)["kind"]
    if state["kind"] != kind:
        raise ValueError(f"the state of a {state['kind']} does not fit a {kind}")
    if isinstance(generator, torch.Generator):
        generator.set_state(state["state"])
    elif isinstance(generator, random.Random):
        generator.setstate(decode(state["state"]))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(numpy_state(state["state"]))
    else:
        bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
        bits.state = numpy_state(state["state"])


def numpy_state(stored: Any) -> dict[str, Any]:
    """The decoded state of a generator of numpy, which does not check the positions in it.

    Raises:
        ValueError: it is not a state, or a position in it lies outside the generator's memory.
    """
    state = decode(stored)
    if not isinstance(state, dict):
        raise ValueError(f"the state of a numpy generator is a {type(state).__name__}, expected a dict")
    inner = state.get("state")
    for part in (state, inner if isinstance(inner, dict) else {}):
        for name, most in _POSITIONS.items():
            if name in part and not (type(part[name]) is int and 0 <= part[name] <= most):
                raise ValueError(f"the state of a numpy generator has the {name} {part[name]!r}")
    return state


def new_generator(state: dict[str, Any]) -> Any:
    """A generator in the state of :func:`generator_state`."""
    kind = state["kind"]
    made: Any
    if kind == "torch.Generator":
        made = torch.Generator(device=state["device"])
    elif kind == "random.Random":
        made = random.Random()
    elif kind == "numpy.random.RandomState":
        made = np.random.RandomState()
    else:
        made = np.random.Generator(_BIT_GENERATORS[kind]())
    set_generator_state(made, state)
    return made


def encode(value: Any, path: str = "value") -> Any:
    """Encodes `value` as None, bool, int, float, str, list, tuple, dict and CPU tensors. Tensors are copied.

    Raises:
        TypeError: a part cannot be encoded; the message has its path.
    """
    if isinstance(value, enum.Enum):
        return {_TAG: "enum", "value": value.name, "class": _class_name(value)}
    if isinstance(value, np.generic):
        if value.dtype.kind not in "biufcSU":
            return {**encode(np.asarray(value), path), _TAG: "numpy scalar"}
        value = value.item()
    for kind in SCALARS[1:]:
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if type(value) in _VALUES:
        type_name = f"{type(value).__module__}.{type(value).__qualname__}"
        return {_TAG: "value", "class": type_name, "value": _VALUES[type(value)][0](value)}
    if _of_pandas(type(value)):
        return {_TAG: "pandas", "class": type(value).__name__, "value": encode(value.asm8), "zone": _zone(value)}
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError(f"{path}: an array of Python objects cannot be stored")
        content = np.frombuffer(value.tobytes(), dtype=np.uint8).copy()
        return {
            _TAG: "ndarray",
            "value": torch.from_numpy(content),
            "dtype": encode(np.lib.format.dtype_to_descr(value.dtype)),
            "shape": list(value.shape),
        }
    if is_generator(value):
        return {_TAG: "generator", "value": generator_state(value)}
    if isinstance(value, dict):
        keys = [encode(key, f"{path}: a key") for key in value]
        items = [encode(item, f"{path}.{key}") for key, item in value.items()]
        if type(value) is dict and all(isinstance(key, SCALARS) for key in keys):
            return dict(zip(keys, items, strict=True))
        if type(value) is defaultdict and has_known_factory(value):
            factory = value.default_factory and value.default_factory.__name__
            return {_TAG: "defaultdict", "value": [keys, items], "factory": factory}
        # Other subclasses become a dict.
        name = type(value).__name__ if type(value) in (Counter, OrderedDict) else "dict"
        return {_TAG: name, "value": [keys, items]}
    if isinstance(value, set | frozenset):
        name = "set" if isinstance(value, set) else "frozenset"
        # Sorted, so that equal sets have equal checksums.
        return {_TAG: name, "value": sorted((encode(item, path) for item in value), key=checksum)}
    if isinstance(value, deque):
        return {_TAG: "deque", "value": [encode(item, path) for item in value], "maxlen": value.maxlen}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {_TAG: "namedtuple", "class": _class_name(value), "value": encode(tuple(value), path)}
    if type(value) in (list, tuple) or isinstance(value, torch.Size):
        items = [encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(f"{path}: a {type(value).__module__}.{type(value).__qualname__} cannot be stored")


def _array(stored: dict[str, Any]) -> Any:
    dtype = np.lib.format.descr_to_dtype(decode(stored["dtype"]))
    if dtype.hasobject:  # whose bytes are addresses
        raise ValueError("an array of Python objects cannot be read")
    return np.ndarray(stored["shape"], dtype, stored["value"].numpy().tobytes()).copy()


def _member(stored: dict[str, Any]) -> Any:
    found = _class(stored["class"])
    if not (isinstance(found, type) and issubclass(found, enum.Enum)):
        raise ValueError(f"there is no enum {stored['class']}")
    return found[stored["value"]]


def _named(stored: dict[str, Any]) -> Any:
    found = _class(stored["class"])
    if not (isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_make")):
        raise ValueError(f"there is no named tuple {stored['class']}")
    return found._make(decode(stored["value"]))


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"there is no dtype {name}")
    return found


def _zone(value: Any) -> Any:
    return None if getattr(value, "tzinfo", None) is None else str(value.tzinfo)


def _timestamp(stored: dict[str, Any]) -> Any:
    if stored["class"] not in _PANDAS:
        raise ValueError(f"a {stored['class']} of pandas cannot be read")
    import pandas

    value = getattr(pandas, stored["class"])(decode(stored["value"]))
    return value if stored["zone"] is None else value.tz_localize("UTC").tz_convert(stored["zone"])


def _dict(stored: dict[str, Any]) -> dict[Any, Any]:
    return dict(zip(*map(decode, stored["value"]), strict=True))


_DECODE: dict[str, Callable[[Any], Any]] = {
    "value": lambda stored: _BY_NAME[stored["class"]](stored["value"]),
    "enum": _member,
    "pandas": _timestamp,
    "ndarray": _array,
    "numpy scalar": lambda stored: _array(stored)[()],
    "namedtuple": _named,
    "generator": lambda stored: new_generator(stored["value"]),
    "Counter": lambda stored: Counter(_dict(stored)),
    "OrderedDict": lambda stored: OrderedDict(_dict(stored)),
    "defaultdict": lambda stored: defaultdict(stored["factory"] and _FACTORIES[stored["factory"]], _dict(stored)),
    "dict": _dict,
    "set": lambda stored: set(decode(stored["value"])),
    "frozenset": lambda stored: frozenset(decode(stored["value"])),
    "deque": lambda stored: deque(decode(stored["value"]), stored["maxlen"]),
}


def decode(stored: Any) -> Any:
    """Inverse of :func:`encode`; tensors are on the CPU."""
    if isinstance(stored, dict):
        if _TAG in stored:
            return _DECODE[stored[_TAG]](stored)
        return {key: decode(value) for key, value in stored.items()}
    if isinstance(stored, list | tuple):
        return type(stored)(decode(value) for value in stored)
    return stored


def check_stored(tensor: Tensor) -> None:
    """Raises ``ValueError`` for a tensor of more elements than memory, which a copy of it would need."""
    if tensor.layout is torch.strided and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"a tensor of shape {list(tensor.shape)} repeats its elements")


def checksum(stored: Any) -> str:
    """A digest of types, shapes and values of encoded data; the same before and after a file."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(stored, digest.update)
    return digest.hexdigest()


def _feed(stored: Any, update: Callable[[Any], None]) -> None:
    if isinstance(stored, Tensor):
        update(f"tensor {stored.dtype} {list(stored.shape)}\n".encode())
        check_stored(stored)
        dense = stored.detach().cpu()
        if dense.layout is not torch.strided:
            sparse = dense.to_sparse().coalesce()
            _feed([sparse.indices(), sparse.values()], update)
            return
        dense = dense.resolve_conj().resolve_neg().contiguous()
        if dense.numel():
            update(dense.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(stored, dict):
        update(f"dict {len(stored)}\n".encode())
        for key, value in stored.items():
            _feed(key, update)
            _feed(value, update)
    elif isinstance(stored, list | tuple):
        update(f"{type(stored).__name__} {len(stored)}\n".encode())
        for value in stored:
            _feed(value, update)
    else:
        update(f"{type(stored).__name__} {stored!r}\n".encode())
