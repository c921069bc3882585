"""The processes that train one model together."""

from __future__ import annotations

from typing import Any

from torch import distributed, nn


class Processes:
    """Those behind a DistributedDataParallel model; for any other model this process alone.

    Attributes:
        rank (int): of this process.
        count (int): processes.
        model (Module): the model itself, without what wraps it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.group = model, None
        self.rank, self.count = 0, 1
        if isinstance(model, nn.parallel.DistributedDataParallel):
            self.model, self.group = model.module, model.process_group
            self.rank, self.count = distributed.get_rank(self.group), distributed.get_world_size(self.group)

    def gather(self, value: Any) -> list[Any]:
        """What each of them calls with, in the order of their ranks."""
        if self.count == 1:
            return [value]
        every: list[Any] = [None] * self.count
        distributed.all_gather_object(every, value, group=self.group)
        return every
