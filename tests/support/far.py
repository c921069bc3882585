"""Views whose elements are more than 2^31, and 2^32, elements apart, in memory of which only what is used exists."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from support.calls import Layout
from support.problems import Maker, Problem, Stack, random_graph

# Cut to 32 bits, with or without a sign, multiples of it are other offsets. A quad of values stays aligned.
FAR = 2**31 + 4
# Of nodes that keep a copy within the 32 bits of the kernels that take a stack at once: it is the copies that are far.
WITHIN = 2**27


class Far(NamedTuple):
    """A problem, and the strides of its first argument."""

    problem: Problem
    strides: Sequence[int]

    def __str__(self) -> str:
        axis = max(range(len(self.strides)), key=lambda i: self.strides[i])
        return f"{self.problem}-{'copies' if WITHIN in self.strides else 'NTF'[axis]}"

    def offset(self) -> int:
        """Of the last element."""
        shape = self.problem.arguments[0].shape
        return sum((size - 1) * stride for size, stride in zip(shape, self.strides, strict=True))

    def layout(self, path: str) -> Layout:
        """Places the first argument far apart in a file, which holds no more than its numbers, or on its GPU."""
        shape = self.problem.arguments[0].shape

        def place(tensor: Tensor) -> Tensor:
            if tensor.shape != shape:
                return tensor
            size = self.offset() + 1
            if tensor.is_cuda:
                memory = tensor.new_empty(size)
            else:
                memory = torch.from_file(path, shared=True, size=size, dtype=tensor.dtype)
            return memory.as_strided(shape, self.strides).copy_(tensor)

        return place


@contextlib.contextmanager
def memory_file() -> Iterator[str]:
    """A file in memory, which other processes open by the same name."""
    file = os.memfd_create("far")
    try:
        yield f"/proc/{os.getpid()}/fd/{file}"
    finally:
        os.close(file)


def _everywhere(problem: Problem) -> list[Far]:
    """Each axis of [N, T, F] far."""
    nodes, steps, channels = problem.arguments[0].shape
    strides = [(FAR, channels, 1), (channels, FAR, 1), (1, nodes, FAR)]
    assert min(nodes, steps, channels) > 2
    return [Far(problem, one) for one in strides]


def problems() -> list[Far]:
    """Every operator that takes x of any strides, by its kernels of several widths."""
    make, graph = Maker(1), random_graph(4, 12)
    shape = (1, 3, 8)
    found: list[Far] = []
    for hidden in (16, 5, 64):
        for stack in (Stack(), Stack(2, False)):
            found += _everywhere(make.layer(graph, (*shape, hidden), stack, hidden == 16))
        found += _everywhere(make.scan((4, 3, 8, hidden), False, True))
        found += _everywhere(make.windows("three", (3, 6, 3, 8, hidden), [3, 0, 1], False))
    found += _everywhere(make.conv(graph, (*shape, 16), Stack(1), 1))
    found += _everywhere(make.layer(graph, (1, 6, 8, 16), Stack(), True, [2, 0, 3]))
    for stack in (Stack(), Stack(2, False)):
        found += [Far(make.layer(graph, (6, 3, 8, 16), stack, True), (WITHIN, 8, 1))]
    return [*found, Far(make.heads(3, 16, 8), (FAR, 1))]
