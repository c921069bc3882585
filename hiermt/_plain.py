"""Python values as a file can hold that ``torch.load(weights_only=True)`` reads, and a checksum over them."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

SCALARS = (type(None), bool, int, float, str)
# What a dict holds as its only key where it stands for a value of another type.
_TAG = "\0hiermt"


def is_generator(value: object) -> bool:
    """Whether `value` draws random numbers from a state of its own."""
    return isinstance(
        value, torch.Generator | random.Random | np.random.Generator | np.random.RandomState | np.random.BitGenerator
    )


def generator_state(generator: Any) -> dict[str, Any]:
    """Kind and state of a random generator, encoded.

    Raises:
        TypeError: it has no state, like ``random.SystemRandom``.
    """
    if isinstance(generator, torch.Generator):
        return {"kind": "torch.Generator", "device": str(generator.device), "state": generator.get_state()}
    if isinstance(generator, random.SystemRandom):
        raise TypeError("random.SystemRandom draws from the system and has no state")
    if isinstance(generator, random.Random):
        return {"kind": "random.Random", "state": encode(generator.getstate())}
    if isinstance(generator, np.random.RandomState):
        return {"kind": "numpy.random.RandomState", "state": encode(generator.get_state(legacy=False))}
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return {"kind": f"numpy.random.{type(bits).__name__}", "state": encode(bits.state)}


def set_generator_state(generator: Any, state: dict[str, Any]) -> None:
    """Puts a state of :func:`generator_state` into a generator of the same kind."""
    kind = generator_state(generator)["kind"]
    if state["kind"] != kind:
        raise ValueError(f"the state of a {state['kind']} does not fit a {kind}")
    if isinstance(generator, torch.Generator):
        generator.set_state(state["state"])
    elif isinstance(generator, random.Random):
        generator.setstate(decode(state["state"]))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(decode(state["state"]))
    else:
        bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
        bits.state = decode(state["state"])


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
        made = np.random.Generator(getattr(np.random, kind.removeprefix("numpy.random."))())
    set_generator_state(made, state)
    return made


def encode(value: Any, path: str = "value") -> Any:
    """`value` out of None, bool, int, float, str, list, tuple, dict and CPU tensors.

    Scalars of numpy become Python's. Tensors are copied.

    Raises:
        TypeError: it holds something else; the message names where.
    """
    if isinstance(value, np.generic) and value.dtype.kind in "biufcSU":
        value = value.item()
    for kind in SCALARS[1:]:
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if isinstance(value, complex):
        return {_TAG: "complex", "value": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {_TAG: "bytes", "value": value.hex()}
    if isinstance(value, Tensor):
        # Clones: what is stored must not change with what it was taken from.
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError(f"{path}: an array of Python objects cannot be stored")
        content = np.frombuffer(value.tobytes(), dtype=np.uint8).copy()
        return {
            _TAG: "ndarray",
            "value": torch.from_numpy(content),
            "dtype": value.dtype.str,
            "shape": list(value.shape),
        }
    if isinstance(value, torch.dtype | torch.device):
        return {_TAG: type(value).__name__, "value": str(value).removeprefix("torch.")}
    if is_generator(value):
        return {_TAG: "generator", "value": generator_state(value)}
    if isinstance(value, dict):
        keys = [encode(key, f"{path}: a key") for key in value]
        items = [encode(item, f"{path}.{key}") for key, item in value.items()]
        if type(value) is dict and all(isinstance(key, SCALARS) for key in keys):
            return dict(zip(keys, items, strict=True))
        # Subclasses of a dict are read as what they hold: an OrderedDict keeps its order in a dict, too.
        name = "Counter" if isinstance(value, Counter) else "dict"
        return {_TAG: name, "value": [keys, items]}
    if isinstance(value, set | frozenset):
        ordered = sorted(value, key=lambda item: (type(item).__name__, item))
        return {_TAG: type(value).__name__, "value": [encode(item, path) for item in ordered]}
    if isinstance(value, deque):
        return {_TAG: "deque", "value": [encode(item, path) for item in value], "maxlen": value.maxlen}
    if type(value) in (list, tuple) or isinstance(value, torch.Size):
        items = [encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(f"{path}: a {type(value).__module__}.{type(value).__qualname__} cannot be stored")


_DECODE: dict[str, Callable[[Any], Any]] = {
    "complex": lambda stored: complex(*stored["value"]),
    "bytes": lambda stored: bytes.fromhex(stored["value"]),
    "ndarray": lambda stored: (
        np.frombuffer(stored["value"].numpy().tobytes(), dtype=np.dtype(stored["dtype"]))
        .reshape(stored["shape"])
        .copy()
    ),
    "dtype": lambda stored: getattr(torch, stored["value"]),
    "device": lambda stored: torch.device(stored["value"]),
    "generator": lambda stored: new_generator(stored["value"]),
    "Counter": lambda stored: Counter(dict(zip(*map(decode, stored["value"]), strict=True))),
    "dict": lambda stored: dict(zip(*map(decode, stored["value"]), strict=True)),
    "set": lambda stored: set(decode(stored["value"])),
    "frozenset": lambda stored: frozenset(decode(stored["value"])),
    "deque": lambda stored: deque(decode(stored["value"]), stored["maxlen"]),
}


def decode(stored: Any) -> Any:
    """What :func:`encode` was given; tensors are on the CPU."""
    if isinstance(stored, dict):
        if _TAG in stored:
            return _DECODE[stored[_TAG]](stored)
        return {key: decode(value) for key, value in stored.items()}
    if isinstance(stored, list | tuple):
        return type(stored)(decode(value) for value in stored)
    return stored


def checksum(stored: Any) -> str:
    """A digest of types, shapes and values of what :func:`encode` gave; the same before and after a file."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(stored, digest.update)
    return digest.hexdigest()


def _feed(stored: Any, update: Callable[[Any], None]) -> None:
    if isinstance(stored, Tensor):
        update(f"tensor {stored.dtype} {list(stored.shape)}\n".encode())
        dense = stored.detach().cpu().contiguous()
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
