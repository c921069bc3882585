"""A random problem of the differential fuzzer as plain data: drawn, made smaller, written down."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

MODELS = ("TGCN", "A3TGCN", "MultiTaskTGCN", "TGCN_HierarchicalMT")
CELLS = ("temporal.TGCN", "temporal.TGCN2", "temporal.A3TGCN", "temporal.A3TGCN2")
FUNCTIONS = (
    *("conv_stack", "gatv2_conv", "gcn_conv", "gated_scan", "gated_scan_windows", "tgcn_layer"),
    *("heads", "decision", "decision_from_logits", "multitask_loss"),
)
GRAPHS = ("random", "stock", "loops", "duplicates", "isolated", "hub in", "hub out", "hub", "equal parts")
# Of x: one graph, a batch over one graph, a batch as PyG joins it, windows of a series.
FORMS = ("plain", "batch", "union", "windows")
# Without a mask: what decides of rows alone, and the cells that have none.
UNMASKED = ("heads", "decision", "decision_from_logits", "temporal.A3TGCN", "temporal.A3TGCN2")
# Whole histories on graphs that change, and day after day; decisions alone.
STREAMS = ("rolling", "live")
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65)
WEIGHTS = ("none", "uniform", "signed", "zeros", "tiny")
# What a case may cost: elements of all states.
MOST = 20_000


@dataclass(frozen=True)
class Case:
    """One problem. The defaults are the smallest of each, which a failure is reduced to."""

    kind: str
    graph: str = "random"
    nodes: int = 2
    edges: int = 2
    weights: str = "none"
    steps: int = 1
    channels: int = 1
    hidden: int = 1
    layers: int = 1
    conv_layers: int = 1
    gat: bool = True
    edge: bool = True
    between: bool = True
    dtype: str = "float64"
    form: str = "plain"
    copies: int = 1
    layout: str = "contiguous"
    # Order of x in memory as the model names it.
    transposed: bool = False
    # A state is given, and the last ones are returned.
    state: bool = False
    returned: bool = False
    sequence: bool = False
    # Nodes come and go; the features of those that are not there are NaN. Of a loss: rows that do not count.
    present: bool = False
    # A scan of x alone, without the result of a convolution.
    one_input: bool = False
    # Parameters in float32, computed in bfloat16.
    autocast: bool = False
    # A model with dropout, in evaluation mode.
    dropout: bool = False
    # Seed of the subset of leaves that require grad; -1: none, 0: all.
    wanted: int = 0
    cotangent: str = "contiguous"
    # Edges as int32, and as a prepared Graph or raw.
    narrow: bool = False
    prepared: bool = True
    # Added self loops of GCN: 1, 2 as improved, 0 as without.
    loop_weight: float = 1.0
    scale: float = 1.0
    threads: int = 1
    seed: int = 0
    numbers: int = 0

    def __str__(self) -> str:
        changed = [one for one in fields(self) if one.name == "kind" or getattr(self, one.name) != one.default]
        return f"Case({', '.join(f'{one.name}={getattr(self, one.name)!r}' for one in changed)})"

    @property
    def computed(self) -> str:
        """The dtype of the kernels, and so the size of rounding errors."""
        return "bfloat16" if self.autocast else self.dtype

    @property
    def cost(self) -> int:
        """Elements of the states, and of the messages of a step."""
        rows = self.nodes * max(self.copies, 1)
        entries = rows + self.edges * max(self.copies, 1)
        width = max(self.hidden, self.channels)
        return max(self.steps, 1) * width * (rows * self.layers + entries // 8 * self.conv_layers)


def draw(rng: random.Random) -> Case:
    """A case from a stream of random numbers."""
    kind = rng.choice((*MODELS * 3, *CELLS, *FUNCTIONS))
    nodes = rng.choice((1, 2, 3, 5, 9, 16, 17, 33, 70, 130))
    case = Case(
        kind,
        graph=rng.choice(GRAPHS),
        nodes=nodes,
        edges=rng.choice((0, 1, nodes, 3 * nodes, 8 * nodes)),
        weights=rng.choice((*WEIGHTS, "uniform", "uniform")),
        steps=rng.choice((1, 2, 3, 4, 5, 7, 8, 12)) if rng.random() < 0.9 else rng.choice((0, 17, 25, 40)),
        channels=rng.choice(SIZES),
        hidden=rng.choice(SIZES),
        layers=rng.choice((1, 1, 2, 2, 3)),
        conv_layers=rng.choice((1, 2, 2, 3)),
        gat=rng.random() < 0.65,
        edge=rng.random() < 0.75,
        between=rng.random() < 0.6,
        dtype=rng.choice(("float64", "float64", "float32", "float32", "bfloat16")),
        form=rng.choice(FORMS),
        copies=rng.choice((1, 2, 3, 5)) if rng.random() < 0.97 else 0,
        layout=rng.choice(("contiguous", "contiguous", "reversed", "swapped", "slice", "step", "offset", "expanded")),
        transposed=rng.random() < 0.3,
        state=rng.random() < 0.35,
        returned=rng.random() < 0.35,
        sequence=rng.random() < 0.5,
        present=rng.random() < 0.3,
        one_input=rng.random() < 0.4,
        autocast=rng.random() < 0.2,
        dropout=rng.random() < 0.2,
        wanted=rng.choice((0, 0, -1, rng.randrange(1, 10**6))),
        cotangent=rng.choice(("contiguous", "expanded", "reversed")),
        narrow=rng.random() < 0.2,
        prepared=rng.random() < 0.5,
        loop_weight=rng.choice((1.0, 1.0, 2.0, 0.0)),
        scale=rng.choice((1.0, 1.0, 0.3, 4.0)),
        threads=rng.choice((1, 1, 1, 2, 3)),
        seed=rng.randrange(10**6),
        numbers=rng.randrange(10**6),
    )
    if rng.random() < 0.12:  # a node of degree in the thousands
        case = replace(case, graph=rng.choice(("hub in", "hub out", "hub")), edges=rng.randrange(1001, 6000))
    if kind in ("MultiTaskTGCN", "TGCN_HierarchicalMT") and rng.random() < 0.2:
        case = replace(case, form=rng.choice(STREAMS), wanted=-1, copies=max(case.copies, 1), steps=max(case.steps, 1))
    return consistent(shrunk_to(case, MOST))


def shrunk_to(case: Case, most: int) -> Case:
    """The case with smaller sizes, until it costs no more than `most`."""
    while case.cost > most and (case.steps > 1 or case.hidden > 3 or case.channels > 3 or case.nodes > 3):
        smaller = {"steps": case.steps // 2 or 1, "hidden": case.hidden * 2 // 3 or 1}
        case = replace(case, **smaller, channels=case.channels * 2 // 3 or 1, nodes=case.nodes * 2 // 3 or 1)
    return case


def consistent(case: Case) -> Case:
    """The case with options that do not exclude each other, which a draw and a smaller case need."""
    if case.kind in CELLS or case.kind == "gcn_conv":
        case = replace(case, gat=False)
    if case.kind == "gatv2_conv":
        case = replace(case, gat=True)
    if case.kind in CELLS and case.form not in ("plain", "batch"):
        case = replace(case, form="batch")
    if case.kind in FUNCTIONS and case.form in STREAMS:
        case = replace(case, form="plain")
    if case.kind.startswith("temporal.A3"):
        case = replace(case, steps=max(case.steps, 1))
    # A softmax over no step has no value.
    if case.kind == "A3TGCN":
        case = replace(case, steps=max(case.steps, 1))
    if case.gat and not case.edge:
        case = replace(case, weights="none")
    # The degree of a GCN may be negative, of which the root is NaN, or nearly zero, which no dtype computes well.
    if not case.gat and case.weights in ("signed", "tiny"):
        case = replace(case, weights="uniform")
    if case.kind in UNMASKED:
        case = replace(case, present=False)
    if not case.kind.startswith("gated_scan"):
        case = replace(case, one_input=False)
    if case.kind not in MODELS:
        case = replace(case, dropout=False, returned=False)
    # A layer adds loops of weight 1 alone.
    if case.kind == "tgcn_layer":
        case = replace(case, loop_weight=1.0)
    # The loss computes in float32 under autocast, as torch's own losses do.
    if case.dtype != "float32" or case.kind == "multitask_loss":
        case = replace(case, autocast=False)
    if case.nodes < 1:
        case = replace(case, nodes=1)
    return case


# For each field, values that are simpler than any other, the simplest first.
_SIMPLE: dict[str, tuple[object, ...]] = {
    "form": ("plain", "batch", "windows"),
    "layers": (1, 2),
    "conv_layers": (1, 2),
    "copies": (1, 2),
    "graph": ("random",),
    "weights": ("none", "uniform"),
    "layout": ("contiguous",),
    "cotangent": ("contiguous",),
    "transposed": (False,),
    "state": (False,),
    "returned": (False,),
    "one_input": (False,),
    "autocast": (False,),
    "dropout": (False,),
    "sequence": (False,),
    "between": (True,),
    "present": (False,),
    "narrow": (False,),
    "prepared": (True,),
    "loop_weight": (1.0,),
    "scale": (1.0,),
    "threads": (1,),
    "wanted": (-1, 0),
    "dtype": ("float64", "float32"),
}
_NUMBERS = ("edges", "nodes", "steps", "hidden", "channels")


def simpler(case: Case) -> Iterator[Case]:
    """Cases with one thing made simpler, the largest step first."""
    for name in _NUMBERS:
        value = getattr(case, name)
        low = 0 if name in ("edges", "steps") else 1
        tried = {low, 1, 2, value // 4, value // 2, value * 3 // 4, value * 9 // 10, value - 1}
        for smaller in sorted(one for one in tried if low <= one < value):
            yield consistent(replace(case, **{name: smaller}))
    for name, values in _SIMPLE.items():
        value = getattr(case, name)
        for other in values:
            if other == value:
                break
            yield consistent(replace(case, **{name: other}))
