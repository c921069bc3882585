"""Captures a whole training step (gather, forward, loss, backward, optimiser) into a CUDA graph and replays it.

A captured step runs the same kernels in the same order as a plain step, so the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hiermt.data import WindowBatch, WindowLoader
from hiermt.data.window_loader import PlannedBatch
from hiermt.training.tasks import Task

_WARM_UP = 3

Step = Callable[[WindowBatch], Tensor]


def can_capture(
    model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, loader: Any, device: torch.device | str
) -> bool:
    """Whether steps over `loader` can be captured: the loader is on the GPU and a step needs no host code."""
    return (
        torch.device(device).type == "cuda"
        and isinstance(loader, WindowLoader)
        and loader.dataset.series.is_cuda
        and task.capturable
        and not isinstance(model, nn.parallel.DistributedDataParallel)
        and all(group.get("capturable", False) for group in optimizer.param_groups)
    )


class CapturedSteps:
    """Runs the first steps plainly, then captures and replays them.

    A smaller batch runs plainly, and so does the first step on each graph, which prepares the graph. A step on another
    graph or with another learning rate is captured anew once the rate is the same for two steps, because a capture
    costs as much as dozens of steps.
    """

    def __init__(self, loader: WindowLoader, optimizer: torch.optim.Optimizer, step: Step) -> None:
        self.loader, self.optimizer, self.step = loader, optimizer, step
        self.warm = 0
        self.prepared: set[int] = set()
        self.hyperparameters: tuple[Any, ...] = ()
        self.structure: tuple[Any, ...] | None = None
        self.captured: dict[int, tuple[tuple[Any, ...], torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self.stream: torch.cuda.Stream | None = None
        self.pool: Any = None

    def drop_stale(self, model: nn.Module) -> None:
        """Drops all captures if the model has changed since the last call.

        A CUDA graph fixes which parameters exist and require gradients, and every number in a module, such as a
        dropout probability.
        """
        parts = [(type(part), _scalars(part)) for part in model.modules()]
        weights = [(weight.requires_grad, weight.data_ptr()) for weight in model.parameters()]
        found = (parts, weights)
        if self.structure is not None and self.structure != found:
            self.captured.clear()
            self.warm = 0
        self.structure = found

    def run(self, batch: PlannedBatch) -> Tensor:
        """The losses of a step on the windows of a batch."""
        # A new stream belongs to the current device, which may not be the device of the model.
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
        # Warm-up steps of a capture must run on a side stream. One stream keeps its memory.
        if self.stream is None:
            self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            losses = self.step(self.loader.gather(*batch))
        torch.cuda.current_stream().wait_stream(self.stream)
        # A smaller batch may use other kernels and does not warm up a capture.
        if batch.starts.numel() == self.loader.batch_size:
            self.warm += 1
            self.prepared.add(id(batch.graph))
        return losses

    def _capture(
        self, hyperparameters: tuple[Any, ...], batch: PlannedBatch
    ) -> tuple[tuple[Any, ...], torch.cuda.CUDAGraph, Tensor, Tensor]:
        # All captures share one memory pool: they never overlap, and only parameters and losses outlive a replay.
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        # The day span is the same for all batches of a graph, so one capture fits all of them.
        static_starts = batch.starts.clone()
        replay = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        # torch's default capture stream belongs to the device of the first capture.
        with torch.cuda.graph(replay, pool=self.pool, stream=self.stream):
            losses = self.step(self.loader.gather(*batch._replace(starts=static_starts)))
        self.captured[id(batch.graph)] = (hyperparameters, replay, static_starts, losses)
        return self.captured[id(batch.graph)]


def _hyperparameters(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """Hyperparameters that a captured step fixes: numbers, and the addresses of tensors on the GPU."""
    return tuple(
        _fixed(value) for group in optimizer.param_groups for key, value in sorted(group.items()) if key != "params"
    )


def _fixed(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    # A CPU tensor is read once, during the capture.
    return float(value) if value.device.type == "cpu" else value.data_ptr()


def _scalars(part: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(part).items()
        if name != "training" and isinstance(value, bool | int | float | str)
    }
