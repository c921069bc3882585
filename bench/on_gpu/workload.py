"""The model, input and training step that are checked, timed and profiled: the same for all three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import torch
from torch import Tensor

import hiermt
from hiermt import reference
from hiermt.native import extension

HEADLINE = 32  # graphs


class Workload:
    """A competitor's model and `copies` graphs; tiny in a dry run, which takes the CPU."""

    def __init__(self, competitor: str, copies: int = HEADLINE, dry: bool = False) -> None:
        self.dry, self.device = dry, "cpu" if dry else "cuda"
        self.case = cases.Case(copies=min(copies, 2), steps=4) if dry else cases.Case(copies=copies)
        self.model, (self.x, *edges) = cases.problem(self.case, competitor, self.device)
        self.graph: hiermt.Graph | None = None
        self.edges: list[Any] = edges
        if not competitor.startswith("pyg"):
            self.graph = hiermt.Graph(edges[0], edges[1], self.x.size(0))
            self.edges = [self.graph]
        self.labels = [torch.randint(0, 2, (self.x.size(0),), device=self.device) for _ in range(2)]

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that the training loop documents."""
        return hiermt.training.adam(self.model)

    def step(self, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        """A training step as the training loop makes it."""
        self.model.train()
        criterion = hiermt.MultiTaskLoss()
        signal, direction = self.labels
        mask = signal == 1

        def run() -> Tensor:
            loss = criterion.terms(*self.model(self.x, *self.edges), signal, direction, mask).total
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return run

    def why_no_template(self) -> str | None:
        """Why the graph is not stored as one copy, which the kernels run from; ``None`` if it is."""
        assert self.graph is not None
        nodes = self.graph.csr(reference.GATV2_RULE, True, torch.float32).rowptr.numel() - 1
        return None if nodes == self.case.nodes else f"the graph has {nodes} nodes, its template {self.case.nodes}"


def why_not_native(dry: bool) -> str | None:
    """Why the native operators cannot run; the reason counts only where the GPU is not pretended."""
    device = "cpu" if dry else "cuda"
    return extension.why_not_native(device) or (None if dry else extension.why_not_gpu(None))
