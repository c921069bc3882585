"""Processes that train together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import start_processes


def two_processes(worker: Callable[..., None], *arguments: Any) -> None:
    """Runs `worker` with ranks 0 and 1 and the arguments.

    They are forks of a process that has imported torch once and has no threads yet: an import takes longer than a test.
    """
    multiprocessing.set_forkserver_preload(["torch", "hiermt"])
    start_processes(worker, args=arguments, nprocs=2, start_method="forkserver")
