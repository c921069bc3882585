"""A training step captured into a CUDA graph and replayed: gather, forward, loss, backward and optimiser at once.

The step that is captured is the step that runs without it, on the same kernels in the same order, so the numbers are
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hiermt.data import WindowBatch, WindowLoader
from hiermt.graph import Graph
from hiermt.loss import MultiTaskLoss

_WARM_UP = 3

Step = Callable[[WindowBatch], Tensor]


def can_capture(
    model: nn.Module, optimizer: torch.optim.Optimizer, criterion: nn.Module, loader: Any, device: torch.device | str
) -> bool:
    """Whether steps over `loader` can be captured: on a GPU, with a loader that lives there and no host in between."""
    return (
        torch.device(device).type == "cuda"
        and isinstance(loader, WindowLoader)
        and loader.dataset.series.is_cuda
        and isinstance(criterion, MultiTaskLoss)
        and criterion.process_group is None
        and not isinstance(model, nn.parallel.DistributedDataParallel)
        and all(group.get("capturable", False) for group in optimizer.param_groups)
    )


class CapturedSteps:
    """Runs steps one by one at first, and replays them once they are warm.

    A step on another number of windows, or on another graph than the last one captured, runs plainly or is captured
    anew. A learning rate that was changed is captured anew, too.
    """

    def __init__(self, loader: WindowLoader, optimizer: torch.optim.Optimizer, step: Step) -> None:
        self.loader, self.optimizer, self.step = loader, optimizer, step
        self.warm = 0
        self.captured: dict[int, tuple[tuple[Any, ...], torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def run(self, starts: Tensor, graph: Graph) -> Tensor:
        """The losses of a step on the windows that start on these days."""
        if starts.numel() != self.loader.batch_size or self.warm < _WARM_UP:
            return self._plain(starts, graph)
        hyper = tuple(
            value
            for group in self.optimizer.param_groups
            for key, value in sorted(group.items())
            if key != "params" and not isinstance(value, Tensor)
        )
        found = self.captured.get(id(graph))
        if found is None or found[0] != hyper:
            found = self._capture(hyper, starts, graph)
        _, replay, static_starts, losses = found
        static_starts.copy_(starts)
        replay.replay()
        return losses

    def _plain(self, starts: Tensor, graph: Graph) -> Tensor:
        # On a side stream, as what is captured later has to have run on one.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self.step(self.loader.gather(starts, graph))
        torch.cuda.current_stream().wait_stream(stream)
        self.warm += 1
        return losses

    def _capture(
        self, hyper: tuple[Any, ...], starts: Tensor, graph: Graph
    ) -> tuple[tuple[Any, ...], torch.cuda.CUDAGraph, Tensor, Tensor]:
        static_starts = starts.clone()
        replay = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(replay):
            losses = self.step(self.loader.gather(static_starts, graph))
        self.captured[id(graph)] = (hyper, replay, static_starts, losses)
        return self.captured[id(graph)]
