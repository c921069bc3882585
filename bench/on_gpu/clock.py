"""Times steps by CUDA events over replays of a CUDA graph, or by wall clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[], Any]
# Rounds before a capture, on the stream that captures.
WARM_UP = 6


class Clock:
    """Times steps on one device, each case for about `seconds`."""

    def __init__(self, device: str, seconds: float = 1.0) -> None:
        self.gpu = device == "cuda"
        self.seconds = seconds
        self.stream = torch.cuda.Stream() if self.gpu else None

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def warm_up(self, steps: list[Step]) -> None:
        few = (steps * WARM_UP)[:WARM_UP]
        if self.stream is None:
            for step in few[:2]:
                step()
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for step in few:
                step()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.wait()

    def captured(self, steps: list[Step]) -> tuple[list[Step], str]:
        """Replays of the captured steps, or the steps if they cannot be captured, and a text that says which."""
        pool = torch.cuda.graph_pool_handle()
        graphs = []
        try:
            for step in steps:
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1], pool=pool, stream=self.stream):
                    step()
        except Exception as error:
            self.wait()
            return steps, f"eager (in capture {type(error).__name__}: {error})"[:500]
        return [graph.replay for graph in graphs], "graph replay"

    def rounds(self, calls: list[Step], count: int, repeats: int) -> list[float]:
        """Milliseconds per call, for `repeats` rounds of `count` calls of the steps in turn."""
        times, turn = [], 0
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if self.gpu else (None, None)
            start = time.perf_counter()
            if begin is not None:
                begin.record()
            for _ in range(count):
                calls[turn % len(calls)]()
                turn += 1
            if begin is not None and end is not None:
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) / count)
            else:
                times.append(1e3 * (time.perf_counter() - start) / count)
        return times

    def time(self, steps: list[Step], *, graph: bool, before_capture: Step | None = None) -> dict[str, Any]:
        """Median and quartiles; `steps` do equal work on different inputs, so that none finds its input in a cache."""
        self.warm_up(steps)
        if before_capture is not None:
            before_capture()
        calls, how = self.captured(steps) if graph and self.gpu else (steps, "eager")
        return {**self.timed(calls), "how": how}

    def timed(self, calls: list[Step]) -> dict[str, Any]:
        """Median and quartiles of calls that need neither warm-up nor capture."""
        for call in calls:
            call()
        self.wait()
        estimate = max(min(self.rounds(calls, 1, 3)), 1e-3)
        # Long enough for the resolution of the clock, and for launches to run ahead of the device.
        count = max(1, min(20, int(2 / estimate)))
        repeats = max(5, min(60, int(1e3 * self.seconds / (count * estimate))))
        first, median, third = statistics.quantiles(self.rounds(calls, count, repeats), n=4)
        return {"ms": median, "q1_ms": first, "q3_ms": third, "rounds": repeats, "calls": count}
