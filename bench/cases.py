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

    @property
    def stocks(self) -> int:
        """Nodes in the batch."""
        return self.nodes * self.copies


CASES = {
    "stocks-3200": Case(),
    "stocks-100": Case(copies=1),
    "gcn-3200": Case(use_gat=False),
    "hidden-8": Case(copies=8, hidden=8),
    "hidden-32": Case(copies=8, hidden=32),
    "hidden-64": Case(copies=8, hidden=64),
    "hidden-128": Case(copies=4, hidden=128),
    "traffic-207": Case(nodes=207, edges=1514, copies=8, features=2, hidden=64, steps=12),
    "traffic-325": Case(nodes=325, edges=2368, copies=4, features=2, hidden=32, steps=12),
    "dense-50": Case(nodes=50, edges=2252, copies=32),
}
COMPETITORS = ("pyg", "pyg-tuned", "pyg-compiled", "twin", "twin-compiled", "native", "native-1-thread", "native-avx2")
PASSES = ("forward", "training")
# Minutes to compile or to run, so only on request.
SLOW = ("pyg-compiled", "twin-compiled")


def problem(case: Case, competitor: str, device: str = "cpu") -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """Model and arguments of a competitor; weights and inputs are equal for all."""
    torch.manual_seed(0)
    backend = "native" if competitor.startswith("native") else "reference"
    model: torch.nn.Module = hiermt.TGCN_HierarchicalMT(
        case.features, case.hidden, case.layers, case.use_gat, backend=backend
    )
    edge_index, edge_weight = testing.stock_graph(case.nodes, case.edges, isolated=min(3, case.nodes // 20))
    edges = testing.batched(edge_index, edge_weight, case.nodes, case.copies)
    if competitor.startswith("pyg"):
        from hiermt.testing import pyg

        model = pyg.like(model)
    if competitor.endswith("compiled"):
        torch._dynamo.config.cache_size_limit = 64
        model = torch.compile(model, dynamic=False)
    x = torch.randn(case.stocks, case.steps, case.features)
    return model.to(device), tuple(t.to(device) for t in (x, *edges) if t is not None)


def forward(model: torch.nn.Module, arguments: tuple[Any, ...]) -> Callable[[], Tensor]:
    """One forward in evaluation mode, over rotating inputs, so that none stays in a cache."""
    model.eval()
    inputs = [arguments[0] + 0.01 * i for i in range(3)]
    turn = itertools.cycle(inputs)

    def run() -> Tensor:
        with torch.no_grad():
            return model(next(turn), *arguments[1:])[0]  # type: ignore[no-any-return]

    return run


def training(model: torch.nn.Module, arguments: tuple[Any, ...]) -> Callable[[], Tensor]:
    """One training step: forward, loss, backward, Adam."""
    model.train()
    stocks, device = arguments[0].size(0), arguments[0].device
    signal = torch.randint(0, 2, (stocks,), device=device)
    direction = torch.randint(0, 2, (stocks,), device=device)
    mask = signal == 1
    criterion = hiermt.MultiTaskLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = criterion.terms(*model(*arguments), signal, direction, mask).total
        loss.backward()
        optimizer.step()
        return loss

    return run
