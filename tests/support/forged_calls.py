"""Calls of every operator with arguments that no caller means: each returns or raises, and the process lives.

A call starts from a valid one and changes a few of its arguments. What the operator makes of it does not matter, but it
has to come back. tests/ops/test_forged_calls.py runs a few thousand of them; by hand, as many as wanted::

    PYTHONPATH=tests python -m support.forged_calls --calls 100000 --seed 7 [--verbose]
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from support import calls
from support.calls import detached, recorded
from support.problems import problems

MODULI = (2, 6, 7)
INTEGERS = (
    *(0, 1, 2, 3, 5, 7, 15, 16, 31, 64, 1000, -1, -2, -7),
    *(2**31 - 1, 2**31, -(2**31), 2**32, 2**48, 2**61, 2**62, 2**63 - 1, -(2**63)),
    # n * k that wraps around to a small product
    *(
        n * pow(k, -1, 2**64) % 2**64 - (2**64 if n * pow(k, -1, 2**64) % 2**64 >= 2**63 else 0)
        for k in (7, 3, 13)
        for n in (1, 2, 7, 14)
    ),
    *((2**64 // k) % 2**63 for k in MODULI),
    *(-(-(2**64) // k) % 2**63 for k in MODULI),
)
FLOATS = (0.0, -1.0, 0.5, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.cfloat,
)
SIZES = (0, 1, 2, 3, 5, 8, 13, 16, 17, 2**20, 2**31, 2**40, 2**62)


def valid_calls() -> list[tuple[str, list[Any]]]:
    """Calls of every operator of the namespace, with every argument of its schema in order."""
    found: list[tuple[str, list[Any]]] = []
    for problem in problems():
        if problem.large:
            continue
        for name, arguments, keywords in recorded(lambda problem=problem: calls.run(problem, True)):
            rest = getattr(torch.ops.hiermt, name).default._schema.arguments[len(arguments) :]
            given = [*arguments, *[keywords.get(one.name, one.default_value) for one in rest]]
            found.append((name, detached(given)))
    return found


def forged_tensor(tensor: Tensor, rng: random.Random) -> Tensor:
    """The tensor with another shape, layout, type, device, or with other numbers in it."""
    shape = list(tensor.shape)
    kind = rng.randrange(15)
    if kind == 0:
        return tensor.to(rng.choice(DTYPES))
    if kind == 1:
        return tensor.reshape(-1)
    if kind == 2:
        return tensor.unsqueeze(rng.randrange(tensor.dim() + 1))
    if kind == 3 and tensor.dim() > 1:
        return tensor.transpose(0, rng.randrange(1, tensor.dim()))
    if kind == 4 and shape:
        dim = rng.randrange(len(shape))
        return tensor.narrow(dim, 0, rng.randrange(shape[dim] + 1))
    if kind == 5 and shape:
        return torch.cat([tensor, tensor], rng.randrange(len(shape)))
    if kind == 6 and shape:  # an empty tensor with any other size
        sizes = list(shape)
        sizes[rng.randrange(len(sizes))] = rng.choice(SIZES)
        sizes[rng.randrange(len(sizes))] = 0
        if math.prod(max(size, 1) for size in sizes) < 2**60:
            return tensor.new_empty(sizes)
    if kind == 7:  # one number, any shape
        sizes = [rng.choice(SIZES) if rng.random() < 0.4 else size for size in shape]
        if math.prod(max(size, 1) for size in sizes) < 2**62:  # which torch itself can count
            return tensor.new_ones([1] * len(sizes)).expand(sizes)
    if kind == 8:
        return tensor.new_empty([rng.choice(SIZES[:8]) for _ in range(rng.randrange(5))])
    if kind == 9:
        return tensor.to("meta")
    if kind == 10 and tensor.numel():  # metadata without the memory
        copy = tensor.clone()
        copy.untyped_storage().resize_(rng.choice((0, copy.untyped_storage().nbytes() // 2)))
        return copy
    if kind == 11 and shape:
        wide = tensor.new_zeros([2 * size for size in shape])
        return wide[tuple(slice(0, 2 * size, 2) for size in shape)].copy_(tensor)
    if kind in (12, 13) and tensor.numel() and not tensor.is_floating_point():
        copy = tensor.clone().reshape(-1)
        for _ in range(rng.choice((1, 1, 1, copy.numel()))):
            value = rng.choice(INTEGERS)
            top = torch.iinfo(copy.dtype).max if copy.dtype != torch.bool else 1
            copy[rng.randrange(copy.numel())] = max(min(value, top), -top)
        return copy.reshape(shape)
    if tensor.numel() and tensor.is_floating_point():
        copy = tensor.clone().reshape(-1)
        copy[rng.randrange(copy.numel())] = max(min(rng.choice(FLOATS), 1e30), -1e30)
        return copy.reshape(shape)
    return tensor.new_empty(0)


def forged(value: Any, rng: random.Random, pool: list[Any]) -> Any:
    """Something else in the place of an argument."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(INTEGERS)
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if value is None or rng.random() < 0.1:
        return rng.choice(pool)
    if isinstance(value, list):
        items = list(value)
        kind = rng.randrange(6)
        if kind == 0 and items:
            items.pop(rng.randrange(len(items)))
        elif kind == 1:
            items += items[: rng.randrange(len(items) + 1)]
        elif kind == 2:
            items = []
        elif kind == 3:
            rng.shuffle(items)
        elif items:
            at = rng.randrange(len(items))
            items[at] = forged_tensor(items[at], rng)
        return items
    return forged_tensor(value, rng)


def call(name: str, arguments: list[Any]) -> Any:
    """Calls an operator with every argument of its schema, in order."""
    operator = getattr(torch.ops.hiermt, name)
    schema = operator.default._schema.arguments
    options = {one.name: value for one, value in zip(schema, arguments, strict=True) if one.kwarg_only}
    return operator(*arguments[: len(arguments) - len(options)], **options)


def run(count: int, seed: int, verbose: bool = False) -> Counter[str]:
    """Makes the calls; returns how many came back in which way."""
    valid = valid_calls()
    by_name: dict[str, list[list[Any]]] = {}
    for name, arguments in valid:
        by_name.setdefault(name, []).append(arguments)
    names = sorted(by_name)
    outcomes: Counter[str] = Counter()
    for i in range(count):
        rng = random.Random(seed * 10**9 + i)
        name = names[i % len(names)]
        arguments = list(rng.choice(by_name[name]))
        pool: list[Any] = [None, *[one for one in arguments if isinstance(one, Tensor)]]
        for at in rng.sample(range(len(arguments)), min(rng.choice((1, 1, 2, 3)), len(arguments))):
            arguments[at] = forged(arguments[at], rng, pool)
        if verbose:
            print(i, name, [tuple(one.shape) if isinstance(one, Tensor) else one for one in arguments], flush=True)
        elif i % 50 == 0:
            print(i, name, file=sys.stderr, flush=True)
        try:
            call(name, arguments)
        except Exception as error:  # which one does not matter here
            outcomes[type(error).__name__] += 1
        else:
            outcomes["returned"] += 1
    # What the calls have left behind still computes.
    for name, arguments in valid:
        call(name, arguments)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-gb", type=float, default=6.0, help="0: no limit, which a sanitizer needs")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if options.memory_gb:
        limit = int(options.memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(1)
    print(dict(run(options.calls, options.seed, options.verbose)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
