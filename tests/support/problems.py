"""Problems for every operator: each graph, shape and option that a kernel has a way of its own for.

A problem is a call of :mod:`hiermt.ops` and of its twin in :mod:`hiermt.reference`. A new operator gets every property
of ``tests/ops/test_contract*.py`` by an entry in :data:`VARIANTS` and its problems in :func:`problems`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hiermt import reference
from hiermt.graph import Graph
from hiermt.testing import batched, stock_graph

Edges = tuple[Tensor, Tensor, int]


class Csr(list):
    """A CSR as the operators of a CPU take it."""


class Problem(NamedTuple):
    """Arguments of one call in float32. Tensors of floating point among them are the leaves that are differentiated."""

    op: str
    label: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    # The result is made of so many parts, and each needs only its own rows of these arguments.
    parts: int = 1
    rows: tuple[int, ...] = (0,)
    edges: Edges | None = None
    gradient: bool = True
    large: bool = False

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"


def random_graph(nodes: int, edges: int, seed: int = 0) -> Edges:
    """A directed graph; loops, duplicates and isolated nodes as they come."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(nodes, (2, edges), generator=generator) if nodes else torch.zeros(2, 0, dtype=torch.int64)
    return ends, torch.rand(ends.size(1), generator=generator) + 0.1, nodes


def _graphs() -> dict[str, Edges]:
    stock = stock_graph(20, 80, isolated=2)
    star = torch.arange(1, 42)
    star = torch.stack([torch.cat([star, star * 0]), torch.cat([star * 0, star])])
    loops = torch.tensor([[0, 1, 1, stock[0][0, 0]], [0, 1, 1, stock[0][1, 0]]])
    return {
        "stock": (*stock, 20),
        "loops": (torch.cat([stock[0], loops], 1), torch.cat([stock[1], torch.tensor([0.5, 2.0, 0.1, 0.7])]), 20),
        "directed": random_graph(9, 30),
        "star": (star, torch.rand(82, generator=torch.Generator().manual_seed(0)) + 0.1, 42),
        "equal parts": (*batched(*stock_graph(70, 280, isolated=0), 70, 3), 210),
        "no edges": random_graph(5, 0),
        "one node": random_graph(1, 2),
        # Tiles of more than 16 MiB, which the CPU kernels take in phases.
        "wide": random_graph(2500, 9000),
    }


GRAPHS = _graphs()
# copies, T, F, H: full and partial chunks of lanes, channels on both sides of every vector width and register block.
SHAPES = [
    (1, 25, 13, 16),
    (3, 6, 16, 16),
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 33, 3, 9),
    (5, 1, 17, 33),
    (4, 4, 8, 8),
    (2, 2, 13, 64),
    (1, 2, 4, 32),
]
# On a graph of its own, where it is not (2, 3, 4, 6).
SHAPE_OF = {"wide": (1, 9, 13, 64)}
# N, T, F, H
SCANS = [(16, 6, 13, 16), (3, 4, 5, 3), (9, 3, 1, 1), (1, 1, 2, 5), (21, 9, 8, 8)]
SCANS += [(10, 17, 33, 17), (8, 3, 64, 32), (5, 2, 7, 65), (7, 3, 13, 64)]
# S, D, T, F, H and first days: overlapping, apart, the same twice, in any order; many groups of windows over one tile
# of nodes, and one group over many; more days than are taken together.
WINDOWS: dict[str, tuple[int, int, int, int, int, Sequence[int]]] = {
    "shuffled": (9, 40, 7, 13, 16, [30, 2, 3, 4, 2, 20, 21, 5, 33]),
    "apart": (3, 40, 5, 4, 3, [0, 12, 35]),
    "one window": (10, 6, 6, 5, 8, [0]),
    "one day": (5, 9, 1, 2, 5, [8, 0, 0, 3]),
    "many groups": (8, 60, 4, 3, 17, range(0, 57, 2)),
    "many tiles": (203, 12, 5, 6, 4, [1, 7, 3]),
    "long": (2, 170, 90, 3, 33, [0, 40, 80, 1]),
    "many channels": (3, 12, 4, 35, 65, [0, 3, 8]),
}


class Stack(NamedTuple):
    """Options of a stack of convolutions."""

    conv_layers: int = 2
    gat: bool = True
    edge: bool = True
    between: bool = True

    @property
    def weighted(self) -> bool:
        """Whether the edges have weights."""
        return self.edge or not self.gat

    def __str__(self) -> str:
        words = [f"{'gat' if self.gat else 'gcn'}{self.conv_layers}", "edge" if self.edge and self.gat else ""]
        return "-".join([word for word in words if word] + ["between" if self.between else "after"])


# The three that people run, and deeper ones.
STACKS = [Stack(), Stack(1, True, False, False), Stack(2, False), Stack(1), Stack(3, True, True, False)]
STACKS += [Stack(3, False, between=False), Stack(2, True, False)]
# Class weights of both heads, label smoothing, gamma of the focal loss.
_WEIGHTS = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([1.5, 0.5], dtype=torch.float64)
LOSSES: dict[str, tuple[Any, ...]] = {
    "plain": (),
    "weights": (*_WEIGHTS, 0.0, 0.0),
    "smoothing": (None, _WEIGHTS[1], 0.1, 0.0),
    "focal": (None, None, 0.0, 2.0),
    "all": (*_WEIGHTS, 0.2, 0.5),
}


class Maker:
    """Makes problems from one stream of random numbers."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def gates(self, hidden: int, channels: int, convolved: bool = True) -> list[Tensor]:
        columns = channels + (2 if convolved else 1) * hidden
        pairs = [(2 * self.random(hidden, columns) * columns**-0.5, 0.3 * self.random(hidden)) for _ in range(3)]
        return [one for pair in pairs for one in pair]

    def linear(self, hidden: int, channels: int) -> list[Tensor]:
        return [self.random(hidden, channels) * max(channels, 1) ** -0.5, 0.4 * self.random(hidden)]

    def stack_params(self, hidden: int, channels: int, stack: Stack) -> list[Tensor]:
        found: list[Tensor] = []
        for i in range(stack.conv_layers):
            inputs = hidden if i else channels
            found += self.linear(hidden, inputs)
            if stack.gat:
                found += [*self.linear(hidden, inputs), self.random(1, 1, hidden) * hidden**-0.5]
                found += [0.4 * self.random(hidden), *([0.5 * self.random(hidden, 1)] if stack.edge else [])]
        return found

    def conv(self, graph: str | Edges, shape: tuple[int, ...], stack: Stack, activation: int) -> Problem:
        copies, steps, channels, hidden = shape
        edges = GRAPHS[graph] if isinstance(graph, str) else graph
        csr, weight = entries(edges, stack.gat)
        x = self.random(copies * edges[2], steps, channels)
        arguments = (x, csr, weight if stack.weighted else None, self.stack_params(hidden, channels, stack))
        options = {"conv_layers": stack.conv_layers, "activation": activation}
        label = f"{graph if isinstance(graph, str) else 'any'}-{shape}-{stack}-{activation}"
        return Problem("conv_stack", label, arguments, options, copies, edges=edges, large=graph == "wide")

    def layer(
        self,
        graph: str | Edges,
        shape: tuple[int, ...],
        stack: Stack,
        sequence: bool,
        starts: Sequence[int] | None = None,
        window: int | None = None,
        state: bool = False,
    ) -> Problem:
        """A layer over copies of a graph, or over windows, half as long as the series by default."""
        copies, steps, channels, hidden = shape
        edges = GRAPHS[graph] if isinstance(graph, str) else graph
        csr, weight = entries(edges, stack.gat)
        x = self.random(copies * edges[2], steps, channels)
        params = (self.stack_params(hidden, channels, stack), self.gates(hidden, channels))
        first = None if starts is None else torch.tensor(starts, dtype=torch.int64)
        nodes = edges[2] * (copies if starts is None else len(starts))
        h0 = 0.5 * self.random(nodes, hidden) if state else None
        arguments = (x, csr, weight if stack.weighted else None, *params, h0, first)
        options = {"conv_layers": stack.conv_layers, "between": stack.between, "sequence": sequence}
        options |= {"steps": 0 if starts is None else steps // 2 if window is None else window}
        words = [graph if isinstance(graph, str) else "any", str(shape), str(stack), *(["state"] if state else [])]
        label = "-".join([*words, "all" if sequence else "last"])
        rows = (5,) if state else ()
        problem = Problem("tgcn_layer", label, arguments, options, copies, (0, *rows), edges, large=graph == "wide")
        if starts is None:
            return problem
        return problem._replace(label=f"windows-{label}", parts=max(len(starts), 1), rows=(*rows, 6))

    def scan(self, shape: tuple[int, ...], state: bool, sequence: bool, convolved: bool = True) -> Problem:
        """A scan of x and, if `convolved`, g."""
        nodes, steps, channels, hidden = shape
        x, g, h0 = self.random(nodes, steps, channels), self.random(nodes, steps, hidden), self.random(nodes, hidden)
        gates = self.gates(hidden, channels, convolved)
        arguments = (x, g.sigmoid() if convolved else None, 0.5 * h0 if state else None, gates)
        words = [str(shape), *(["state"] if state else []), *([] if convolved else ["one input"])]
        label = "-".join([*words, "all" if sequence else "last"])
        rows = (0, *((1,) if convolved else ()), *((2,) if state else ()))
        return Problem("gated_scan", label, arguments, {"sequence": sequence}, nodes, rows)

    def windows(
        self,
        name: str,
        shape: tuple[int, ...],
        starts: Sequence[int],
        sequence: bool,
        state: bool = False,
        convolved: bool = True,
    ) -> Problem:
        nodes, days, steps, channels, hidden = shape
        x, g = self.random(nodes, days, channels), self.random(nodes, days, hidden).sigmoid() if convolved else None
        first = torch.tensor(starts, dtype=torch.int64)
        h0 = 0.5 * self.random(len(first) * nodes, hidden) if state else None
        arguments = (x, g, h0, self.gates(hidden, channels, convolved), first)
        words = f"{'-state' if state else ''}{'' if convolved else '-one input'}"
        label = f"{name}-windows{words}-{'all' if sequence else 'last'}"
        options = {"sequence": sequence, "steps": steps}
        return Problem("gated_scan", label, arguments, options, len(first), (2, 4) if state else (4,))

    def decided(self, layer: Problem, features: int = 3, threshold: float = 0.5) -> Problem:
        """A layer that hands its last state to the heads."""
        x, csr, weight, convs, gates, *state = layer.arguments
        heads = self.head_params(convs[0].size(0), features)
        options = {name: value for name, value in layer.options.items() if name != "sequence"}
        return layer._replace(
            op="tgcn_layer_decision",
            arguments=(x, csr, weight, convs, gates, heads, *state),
            options={**options, "threshold": threshold},
            rows=tuple(row + (row > 0) for row in layer.rows),
            gradient=False,
        )

    def head_params(self, hidden: int, features: int) -> list[Tensor]:
        shapes = [(features, hidden), (features,), (2, features), (2,), (2, features), (2,)]
        return [self.random(*shape) * 0.3 for shape in shapes]

    def heads(self, rows: int, hidden: int, features: int, threshold: float = 0.5) -> Problem:
        params = self.head_params(hidden, features)
        arguments = (self.random(rows, hidden), *params)
        return Problem("decision", f"{(rows, hidden, features)}", arguments, {"threshold": threshold}, rows)

    def logits(self, rows: int, threshold: float) -> Problem:
        arguments = (self.random(rows, 2), 3 * self.random(rows, 2))
        options = {"threshold": threshold}
        return Problem("decision_from_logits", f"{rows}-{threshold}", arguments, options, rows, (0, 1), gradient=False)

    def loss(self, rows: int, name: str, masked: bool, selected: bool = False) -> Problem:
        signal, direction = 3 * self.random(rows, 2), 3 * self.random(rows, 2)
        targets = torch.randint(2, (2, rows), generator=self.generator)
        mask = torch.randint(3, (rows,), generator=self.generator) == 0 if masked else None
        options = LOSSES[name]
        if selected:
            options = (*(options or (None, None, 0.0, 0.0)), torch.randint(3, (rows,), generator=self.generator) > 0)
        label = f"{rows}-{name}{'-mask' if masked else ''}{'-rows' if selected else ''}"
        return Problem("multitask_loss", label, (signal, direction, *targets, mask, 0.7, *options), {})

    def prepare(self, graph: str, rule: int, dtype: torch.dtype = torch.int64) -> Problem:
        edge_index, _, nodes = GRAPHS[graph]
        label = f"{graph}-{rule}-{str(dtype).removeprefix('torch.')}"
        return Problem("graph_prepare", label, (edge_index.to(dtype), nodes, rule), {}, gradient=False)


def entries(edges: Edges, gat: bool, weight: Tensor | None = None) -> tuple[Csr, Tensor]:
    """CSR of a graph and the weight of each entry, of `weight` in place of its own if that is given."""
    rule = reference.GATV2_RULE if gat else reference.GCN_RULE
    graph = Graph(edges[0], edges[1].double() if weight is None else weight, edges[2])
    found = graph.csr(rule, True, torch.float64, whole=True)
    assert found.weight is not None
    return Csr(found.tensors), found.weight if weight is not None else found.weight.float()


def problems() -> Iterator[Problem]:
    """Every operator on every graph, shape and option; empty sizes at the end of each."""
    make, bools = Maker(), (True, False)
    for name in GRAPHS:
        for rule in (reference.GATV2_RULE, reference.GCN_RULE):
            yield make.prepare(name, rule)
            yield make.prepare(name, rule, torch.int32)

    gat, bare, gcn = Stack(1), Stack(1, edge=False), Stack(1, False)
    empty = [("stock", (0, 3, 2, 5)), ("stock", (2, 0, 2, 5)), (random_graph(0, 0), (1, 3, 2, 5))]
    for i, stack in enumerate((gat, bare, gcn)):
        for k, shape in enumerate(SHAPES):
            yield make.conv("stock", shape, stack, (i + k) % 4)
        for k, name in enumerate(GRAPHS):
            yield make.conv(name, SHAPE_OF.get(name, (2, 3, 4, 6)), stack, k % 4)
        yield from (make.conv(graph, shape, stack, 1)._replace(label=f"empty{shape}") for graph, shape in empty)

    for i, stack in enumerate(stack for stack in STACKS if stack.conv_layers > 1):
        yield from (make.conv("stock", SHAPES[(i + k) % len(SHAPES)], stack, (i + k) % 4) for k in (1, 6))

    for i, shape in enumerate(SCANS):
        yield from (make.scan(shape, bool(i % 2) != sequence, sequence) for sequence in bools)
    yield from (make.scan(shape, sequence, sequence) for shape in [(0, 4, 2, 3), (3, 0, 2, 3)] for sequence in bools)

    for name, (*sizes, starts) in WINDOWS.items():
        yield make.windows(name, tuple(sizes), starts, True, state=name in ("shuffled", "many groups"))
        yield make.windows(name, tuple(sizes), starts, False, state=name in ("apart", "many tiles"))
    for nodes, count, steps in ((0, 2, 3), (4, 0, 3), (4, 2, 0)):
        yield make.windows(f"empty{(nodes, count, steps)}", (nodes, 5, steps, 2, 3), [0] * count, steps > 0)

    for i, stack in enumerate(STACKS):
        for k in (0, 3):
            shape = SHAPES[(i + k) % len(SHAPES)]
            yield make.layer("stock", shape, stack, (i + k) % 2 == 0)
            yield make.layer("stock", shape, stack, (i + k) % 2 == 1, state=True)
        for sequence in bools:
            yield make.layer(
                "stock", (1, 12, 4, (16, 33, 17)[i % 3]), stack, sequence, [6, 0, 1, 1], state=bool(i % 2) == sequence
            )
    for i, name in enumerate(GRAPHS):
        shape = SHAPE_OF.get(name, (2, 3, 4, 6))
        yield from (make.layer(name, shape, stack, i % 2 == 0) for stack in (Stack(), Stack(2, False)))
    for stack in (Stack(), Stack(2, False)):
        yield from (make.layer("stock", shape, stack, shape[1] > 0) for shape in [(0, 3, 2, 5), (2, 0, 2, 5)])
        yield make.layer("stock", (1, 8, 2, 5), stack, True, [])._replace(label=f"empty-no window-{stack}")
        yield make.layer("stock", (1, 1, 2, 5), stack, False, [0, 1])._replace(label=f"empty-no day-{stack}")

    rows = [(100, 16, 16), (1, 16, 16), (3, 1, 1), (17, 5, 3), (600, 37, 9), (65, 128, 64)]
    yield from (make.heads(*size) for size in [*rows, (0, 16, 16), (4, 8, 0), (4, 0, 3)])
    yield from (make.logits(count, threshold) for count in (200, 17, 0) for threshold in (0.0, 0.25, 0.5, 0.9, 1.0))
    for count in (1, 2, 15, 16, 17, 511, 513, 3200):
        for masked in bools:
            yield make.loss(count, "plain", masked)
    yield from (make.loss(count, name, masked) for count in (17, 700) for name in LOSSES for masked in bools)
    yield from (make.loss(count, name, masked, True) for count in (17, 700) for name in LOSSES for masked in bools)

    for shape in [*SCANS[::2], (5, 4, 3, 6), (0, 4, 2, 3)]:
        yield from (make.scan(shape, sequence, sequence, convolved=False) for sequence in bools)
    for name in ("shuffled", "many groups", "many channels"):
        *sizes, starts = WINDOWS[name]
        for sequence in bools:
            yield make.windows(name, tuple(sizes), starts, sequence, state=not sequence, convolved=False)
    yield from _decided(make)


def _decided(make: Maker) -> Iterator[Problem]:
    """Layers that end in a decision."""
    for i, stack in enumerate(STACKS):
        state = bool(i % 2)
        yield make.decided(make.layer("stock", SHAPES[i], stack, False, state=state), 1 + i, 0.2 * i % 1)
        shape = (1, 12, 4, (16, 33, 17)[i % 3])
        yield make.decided(make.layer("stock", shape, stack, False, [6, 0, 1, 1], state=not state), 16)
    for i, name in enumerate(GRAPHS):
        layer = make.layer(name, SHAPE_OF.get(name, (2, 3, 4, 6)), Stack(2, bool(i % 2)), False)
        yield make.decided(layer, 1 + 5 * (i % 3))
    for shape in ((0, 3, 2, 5), (2, 0, 2, 5)):
        yield make.decided(make.layer("stock", shape, Stack(), False, state=shape[1] == 0))
    none = make.layer("stock", (1, 8, 2, 5), Stack(), False, [])._replace(label="empty-no window")
    yield from (make.decided(one) for one in (none, make.layer("stock", (1, 1, 2, 5), Stack(), False, [0, 1])))


def _of(build: Callable[[Maker, int], Problem]) -> Callable[[int], Problem]:
    return lambda count: build(Maker(1), count)


# A way through each operator, as a problem of any number of copies, windows or rows.
VARIANTS: dict[str, Callable[[int], Problem]] = {
    "conv_stack, GATv2": _of(lambda make, n: make.conv("stock", (n, 7, 5, 16), Stack(1), 2)),
    "conv_stack, no edge term": _of(lambda make, n: make.conv("stock", (n, 7, 5, 16), Stack(1, edge=False), 0)),
    "conv_stack, two": _of(lambda make, n: make.conv("stock", (n, 7, 5, 16), Stack(), 3)),
    "conv_stack, GCN": _of(lambda make, n: make.conv("stock", (n, 7, 5, 16), Stack(1, False), 1)),
    "gated_scan": _of(lambda make, n: make.scan((8 * n, 5, 4, 16), True, True)),
    "gated_scan, one input": _of(lambda make, n: make.scan((8 * n, 5, 4, 16), True, True, convolved=False)),
    "gated_scan, last": _of(lambda make, n: make.scan((8 * n, 5, 4, 7), True, False)),
    "gated_scan, windows": _of(
        lambda make, n: make.windows("any", (9, 12, 4, 5, 16), [3, 0, 5, 8, 1][:n] * n, True, state=True)
    ),
    "tgcn_layer": _of(lambda make, n: make.layer("stock", (n, 5, 5, 16), Stack(), True)),
    "tgcn_layer, last": _of(lambda make, n: make.layer("stock", (n, 5, 5, 7), Stack(1, True, False, False), False)),
    "tgcn_layer, GCN": _of(lambda make, n: make.layer("stock", (n, 5, 5, 16), Stack(2, False), True)),
    "tgcn_layer, state": _of(lambda make, n: make.layer("stock", (n, 5, 5, 16), Stack(1), True, state=True)),
    "tgcn_layer, windows": _of(
        lambda make, n: make.layer("stock", (1, 12, 5, 16), Stack(), True, [6, 0, 1, 1][:n] * n)
    ),
    "tgcn_layer_decision": _of(lambda make, n: make.decided(make.layer("stock", (n, 5, 5, 16), Stack(), False))),
    "tgcn_layer_decision, state": _of(
        lambda make, n: make.decided(make.layer("stock", (n, 5, 5, 7), Stack(2, False), False, state=True), 7, 0.4)
    ),
    "tgcn_layer_decision, windows": _of(
        lambda make, n: make.decided(make.layer("stock", (1, 12, 5, 16), Stack(1), False, [6, 0, 1, 1][:n] * n))
    ),
    "decision": _of(lambda make, n: make.heads(50 * n, 16, 8)),
    "decision_from_logits": _of(lambda make, n: make.logits(50 * n, 0.4)),
    "multitask_loss": _of(lambda make, n: make.loss(50 * n, "plain", True)),
    "multitask_loss, options": _of(lambda make, n: make.loss(50 * n, "all", False)),
    "multitask_loss, rows": _of(lambda make, n: make.loss(50 * n, "plain", True, True)),
}
