"""Processes of a distributed training."""

from __future__ import annotations

from typing import Any

from torch import distributed, nn


class Processes:
    """The processes of a DistributedDataParallel model; for any other model only this process.

    Attributes:
        rank (int): rank of this process.
        count (int): number of processes.
        model (Module): the model without its wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.group = model, None
        self.rank, self.count = 0, 1
        if isinstance(model, nn.parallel.DistributedDataParallel):
            self.model, self.group = model.module, model.process_group
            self.rank, self.count = distributed.get_rank(self.group), distributed.get_world_size(self.group)

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, by rank. All processes must call it."""
        if self.count == 1:
            return [value]
        every: list[Any] = [None] * self.count
        distributed.all_gather_object(every, value, group=self.group)
        return every
