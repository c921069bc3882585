"""The benchmark problems and the competing implementations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hiermt
from hiermt import testing
from hiermt.nn import temporal


@dataclass(frozen=True)
class Case:
    """Sizes of one problem: `copies` equal graphs in a batch, stored as in a PyG ``Batch``."""

    nodes: int = 100
    edges: int = 720
    copies: int = 32
    features: int = 13
    hidden: int = 16
    steps: int = 25
    layers: int = 2
    use_gat: bool = True
    model: str = "TGCN_HierarchicalMT"  # a key of FAMILIES, or PIPELINE
    absent: float = 0.0  # share of the cells of a mask that are not there; no mask if 0

    @property
    def stocks(self) -> int:
        """Nodes in the batch."""
        return self.nodes * self.copies


# Not a batch but an epoch, of `copies` windows; see pipeline.py.
PIPELINE = "the published pipeline"
CASES = {
    "stocks-3200": Case(),
    "stocks-100": Case(copies=1),
    "stocks-102400": Case(copies=1024),
    "gcn-3200": Case(use_gat=False),
    "absent-3200": Case(absent=0.1),
    "gcn-absent-3200": Case(use_gat=False, absent=0.1),
    "hidden-8": Case(copies=8, hidden=8),
    "hidden-32": Case(copies=8, hidden=32),
    "hidden-64": Case(copies=8, hidden=64),
    "hidden-128": Case(copies=4, hidden=128),
    "traffic-207": Case(nodes=207, edges=1514, copies=8, features=2, hidden=64, steps=12),
    "traffic-325": Case(nodes=325, edges=2368, copies=4, features=2, hidden=32, steps=12),
    "dense-50": Case(nodes=50, edges=2252, copies=32),
    "a3tgcn": Case(model="A3TGCN"),
    "a3tgcn-gcn": Case(model="A3TGCN", use_gat=False),
    "metr-la-tgcn2": Case(nodes=207, edges=1514, features=2, hidden=32, steps=12, model="TGCN2"),
    "metr-la-a3tgcn2": Case(nodes=207, edges=1514, features=2, hidden=32, steps=12, model="A3TGCN2"),
    "published-phase2": Case(copies=599, use_gat=False, model=PIPELINE),
}
COMPETITORS = ("pyg", "pyg-tuned", "pyg-compiled", "twin", "twin-compiled", "native", "native-1-thread", "native-avx2")
# The pipeline with the published data loader.
COMPETITORS += ("native-files",)
PASSES = ("forward", "training")
# Minutes to compile or to run, so only on request.
SLOW = ("pyg-compiled", "twin-compiled")


def applies(case: Case, competitor: str, direction: str | None = None) -> bool:
    """Whether a competitor runs a case: an epoch of the pipeline trains, and it alone reads files."""
    if case.absent and competitor.startswith("pyg"):
        return False  # PyG has no mask
    if case.copies > 1000 and (competitor != "native" or direction == "training"):
        return False  # takes more memory than many machines have
    if case.model != PIPELINE:
        return competitor != "native-files"
    return direction != "forward" and not competitor.endswith("compiled")


def problem(case: Case, competitor: str, device: str = "cpu") -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """Model and arguments of a competitor; weights and inputs are equal for all."""
    torch.manual_seed(0)
    backend = "native" if competitor.startswith("native") else "reference"
    ours, theirs = FAMILIES[case.model]
    model: torch.nn.Module = ours(case, backend)
    edge_index, edge_weight = testing.stock_graph(case.nodes, case.edges, isolated=min(3, case.nodes // 20))
    edges: tuple[Any, ...] = edge_index, edge_weight
    x = torch.randn(case.stocks, case.steps, case.features)
    if case.model in BATCHED:
        x = x.reshape(case.copies, case.nodes, case.steps, case.features).transpose(2, 3).contiguous()
    else:
        edges = testing.batched(edge_index, edge_weight, case.nodes, case.copies)
    if competitor.startswith("pyg"):
        oracle = theirs(case)
        oracle.load_state_dict(model.state_dict(), strict=True)
        model = oracle
    if competitor.endswith("compiled"):
        torch._dynamo.config.cache_size_limit = 64
        model = torch.compile(model, dynamic=False)
    if case.absent:
        model = Masked(model, torch.rand(case.stocks, case.steps) >= case.absent)
    return model.to(device), tuple(t.to(device) for t in (x, *edges) if t is not None)


class Masked(torch.nn.Module):
    """A model over stocks that come and go."""

    present: Tensor

    def __init__(self, model: torch.nn.Module, present: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("present", present)

    def forward(self, x: Tensor, *edges: Tensor) -> Any:
        return self.model(x, *edges, present=self.present)


class Stepped(torch.nn.Module):
    """A cell of PyTorch Geometric Temporal over ``[B, N, F, T]``: a loop as its users write it, or one call of ours."""

    def __init__(self, cell: torch.nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, *edges: Tensor) -> Tensor:
        if isinstance(self.cell, temporal.TGCN):
            return self.cell.sequence(x, *edges)
        h = None
        for step in x.unbind(-1):
            h = self.cell(step, *edges, h)
        assert h is not None
        return h


def _pyg(name: str) -> Callable[[Case], torch.nn.Module]:
    def make(case: Case) -> torch.nn.Module:
        from hiermt.testing import pyg, pyg_temporal

        sizes = case.features, case.hidden
        if name == "TGCN_HierarchicalMT":
            return pyg.HierarchicalMT(*sizes, case.layers, use_gat=case.use_gat)
        if name == "A3TGCN":
            return pyg.AttentionBackbone(case.features, 3, case.hidden, case.layers, use_gat=case.use_gat)
        return Stepped(pyg_temporal.TGCN(*sizes)) if name == "TGCN2" else pyg_temporal.A3TGCN(*sizes, case.steps)

    return make


# Our model, and the one on PyG that it replaces.
FAMILIES: dict[str, tuple[Callable[[Case, str], torch.nn.Module], Callable[[Case], torch.nn.Module]]] = {
    "TGCN_HierarchicalMT": (
        lambda c, backend: hiermt.TGCN_HierarchicalMT(c.features, c.hidden, c.layers, c.use_gat, backend=backend),
        _pyg("TGCN_HierarchicalMT"),
    ),
    "A3TGCN": (
        lambda c, backend: hiermt.A3TGCN(c.features, 3, c.hidden, c.layers, None, c.use_gat, backend=backend),
        _pyg("A3TGCN"),
    ),
    "TGCN2": (
        lambda c, backend: Stepped(temporal.TGCN2(c.features, c.hidden, c.copies, backend=backend)),
        _pyg("TGCN2"),
    ),
    "A3TGCN2": (
        lambda c, backend: temporal.A3TGCN2(c.features, c.hidden, c.steps, c.copies, backend=backend),
        _pyg("A3TGCN2"),
    ),
}
# Families that take ``[B, N, F, T]`` on one shared graph, not ``[B * N, T, F]`` on a disjoint union.
BATCHED = ("TGCN2", "A3TGCN2")


def forward(model: torch.nn.Module, arguments: tuple[Any, ...]) -> Callable[[], Tensor]:
    """One forward in evaluation mode, over rotating inputs, so that none stays in a cache."""
    model.eval()
    inputs = [arguments[0] + 0.01 * i for i in range(3)]
    turn = itertools.cycle(inputs)

    def run() -> Tensor:
        with torch.no_grad():
            y = model(next(turn), *arguments[1:])
            return y[0] if isinstance(y, tuple) else y  # type: ignore[no-any-return]

    return run


def training(model: torch.nn.Module, arguments: tuple[Any, ...]) -> Callable[[], Tensor]:
    """One training step: forward, loss, backward, Adam."""
    model.train()
    with torch.no_grad():
        output = model(*arguments)
    device = arguments[0].device
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    if not isinstance(output, tuple):
        return _regression(model, arguments, optimizer, torch.randn_like(output))
    stocks = arguments[0].size(0)
    signal = torch.randint(0, 2, (stocks,), device=device)
    direction = torch.randint(0, 2, (stocks,), device=device)
    mask = signal == 1
    criterion = hiermt.MultiTaskLoss()

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = criterion.terms(*model(*arguments), signal, direction, mask).total
        loss.backward()
        optimizer.step()
        return loss

    return run


def _regression(
    model: torch.nn.Module, arguments: tuple[Any, ...], optimizer: torch.optim.Optimizer, target: Tensor
) -> Callable[[], Tensor]:
    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(model(*arguments), target)
        loss.backward()
        optimizer.step()
        return loss

    return run
