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
from hiermt.data.window_loader import PlannedBatch
from hiermt.training.criterion import is_own

_WARM_UP = 3

Step = Callable[[WindowBatch], Tensor]


def can_capture(
    model: nn.Module, optimizer: torch.optim.Optimizer, criterion: Any, loader: Any, device: torch.device | str
) -> bool:
    """Whether steps over `loader` can be captured: on a GPU, with a loader that lives there and no host in between."""
    return (
        torch.device(device).type == "cuda"
        and isinstance(loader, WindowLoader)
        and loader.dataset.series.is_cuda
        and is_own(criterion)
        and criterion.process_group is None
        and not isinstance(model, nn.parallel.DistributedDataParallel)
        and all(group.get("capturable", False) for group in optimizer.param_groups)
    )


class CapturedSteps:
    """Runs steps one by one at first, and replays them once they are warm.

    A step on another number of windows runs plainly, and so does the first one on each graph, which prepares it. A step
    on another graph, or with another learning rate, is captured anew once the rate has stayed for two steps: a capture
    costs as much as dozens of steps.
    """

    def __init__(self, loader: WindowLoader, optimizer: torch.optim.Optimizer, step: Step) -> None:
        self.loader, self.optimizer, self.step = loader, optimizer, step
        self.warm = 0
        self.prepared: set[int] = set()
        self.hyperparameters: tuple[Any, ...] = ()
        self.looked: tuple[Any, ...] | None = None
        self.captured: dict[int, tuple[tuple[Any, ...], torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self.stream: torch.cuda.Stream | None = None
        self.pool: Any = None

    def look(self, model: nn.Module) -> None:
        """Forgets what was captured if, since the last look, parameters were frozen or replaced or a part of the model
        was told another number, such as a share of dropout. A graph holds all these as they were."""
        parts = [(type(part), _scalars(part)) for part in model.modules()]
        weights = [(weight.requires_grad, weight.data_ptr()) for weight in model.parameters()]
        found = (parts, weights)
        if self.looked is not None and self.looked != found:
            self.captured.clear()
            self.warm = 0
        self.looked = found

    def run(self, batch: PlannedBatch) -> Tensor:
        """The losses of a step on the windows of a batch."""
        # A stream belongs to the device that is current, which need not be that of the model.
        with torch.cuda.device_of(batch.starts):  # type: ignore[no-untyped-call]
            return self._run(batch)

    def _run(self, batch: PlannedBatch) -> Tensor:
        starts, graph = batch.starts, batch.graph
        before, self.hyperparameters = self.hyperparameters, _hyperparameters(self.optimizer)
        if starts.numel() != self.loader.batch_size:
            return self._plain(batch)
        found = self.captured.get(id(graph))
        if found is None or found[0] != self.hyperparameters:
            if self.warm < _WARM_UP or id(graph) not in self.prepared or self.hyperparameters != before:
                return self._plain(batch)
            found = self._capture(self.hyperparameters, batch)
        _, replay, static_starts, losses = found
        static_starts.copy_(starts)
        replay.replay()
        return losses

    def _plain(self, batch: PlannedBatch) -> Tensor:
        # On a side stream, as what is captured later has to have run on one; always the same, whose memory is kept.
        if self.stream is None:
            self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            losses = self.step(self.loader.gather(*batch))
        torch.cuda.current_stream().wait_stream(self.stream)
        # A smaller batch may have run on other kernels than those a capture would meet first.
        if batch.starts.numel() == self.loader.batch_size:
            self.warm += 1
            self.prepared.add(id(batch.graph))
        return losses

    def _capture(
        self, hyperparameters: tuple[Any, ...], batch: PlannedBatch
    ) -> tuple[tuple[Any, ...], torch.cuda.CUDAGraph, Tensor, Tensor]:
        # All captures share their memory: they never run side by side, and nothing of one is read after the next has
        # begun but its parameters and losses, which are kept.
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        # A loader says the same of the days of all batches of a graph, so that what is captured fits them all.
        static_starts = batch.starts.clone()
        replay = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        # Not on the stream that torch keeps for captures, which belongs to the device of the first of them.
        with torch.cuda.graph(replay, pool=self.pool, stream=self.stream):
            losses = self.step(self.loader.gather(*batch._replace(starts=static_starts)))
        self.captured[id(batch.graph)] = (hyperparameters, replay, static_starts, losses)
        return self.captured[id(batch.graph)]


def _hyperparameters(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """What a captured step of the optimiser holds: numbers, and which tensors it reads anew in each replay."""
    return tuple(
        _fixed(value) for group in optimizer.param_groups for key, value in sorted(group.items()) if key != "params"
    )


def _fixed(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    # On the host it is read once, when the step is captured.
    return float(value) if value.device.type == "cpu" else value.data_ptr()


def _scalars(part: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(part).items()
        if name != "training" and isinstance(value, bool | int | float | str)
    }
