"""Captures a whole training step (gather, forward, loss, backward, optimiser) into a CUDA graph and replays it.

A captured step runs the same kernels in the same order as a plain step, so the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hiermt.data import WindowBatch, WindowLoader
from hiermt.data.window_loader import PlannedBatch
from hiermt.graph import Graph
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


class Capture(NamedTuple):
    """A captured step.

    Attributes:
        fixed: what the step was captured with: hyperparameters, and the writes to the graph.
        replay: the CUDA graph.
        starts: first days of the windows, which a replay reads.
        losses: where a replay writes its losses.
    """

    fixed: tuple[Any, ...]
    replay: torch.cuda.CUDAGraph
    starts: Tensor
    losses: Tensor


class CapturedSteps:
    """Runs the first steps plainly, then captures and replays them.

    A smaller batch runs plainly, and so does the first step on each graph, which prepares the graph. A step on another
    graph or with another learning rate is captured anew once the rate is the same for two steps, because a capture
    costs as much as dozens of steps.
    """

    def __init__(self, loader: WindowLoader, optimizer: torch.optim.Optimizer, step: Step) -> None:
        self.loader, self.optimizer, self.step = loader, optimizer, step
        self.warm = 0
        # Writes to each graph at its last plain step.
        self.prepared: WeakKeyDictionary[Graph, tuple[int, ...]] = WeakKeyDictionary()
        self.hyperparameters: tuple[Any, ...] = ()
        self.structure: tuple[Any, ...] | None = None
        # A replay reads the lists of its graph, so a capture keeps the graph.
        self.captured: dict[Graph, Capture] = {}
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
        fixed = (self.hyperparameters, graph.versions)
        found = self.captured.get(graph)
        if found is None or found.fixed != fixed:
            prepared = self.prepared.get(graph) == graph.versions
            if self.warm < _WARM_UP or not prepared or self.hyperparameters != before:
                return self._plain(batch)
            found = self.captured[graph] = self._capture(fixed, batch)
        found.starts.copy_(starts)
        found.replay.replay()
        return found.losses

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
            self.prepared[batch.graph] = batch.graph.versions
        return losses

    def _capture(self, fixed: tuple[Any, ...], batch: PlannedBatch) -> Capture:
        # All captures share one memory pool: they never overlap, and only parameters and losses outlive a replay.
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        # The day span is the same for all batches of a graph, so one capture fits all of them.
        static_starts = batch.starts.clone()
        replay = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        # torch's default capture stream belongs to the device of the first capture. Other threads, such as one that
        # pins memory, may go on allocating.
        try:
            with torch.cuda.graph(replay, self.pool, self.stream, capture_error_mode="thread_local"):
                losses = self.step(self.loader.gather(*batch._replace(starts=static_starts)))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"capture: a training step of this model cannot be captured into a CUDA graph, which allows no "
                f"synchronisation and no work on the CPU ({error}); pass capture=False to run each step as it is"
            ) from error
        return Capture(fixed, replay, static_starts, losses)


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
