"""Times one competitor on a GPU, in a separate process for ``bench/gpu.py``.

    python bench/gpu_cases.py native figures.json [--dry-run]

The file is rewritten after each case, so that earlier cases are kept if the process is killed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cases
import torch

import hiermt
from hiermt import data, functional
from hiermt.io.files import atomic_write
from hiermt.native import extension
from hiermt.nn import inputs as _inputs

Step = Callable[[], Any]

# Required milliseconds on an H100; the decision is compared with a copy instead.
REQUIRED_MS = {"forward, 32 graphs": 0.080, "forward, 1 graph": 0.040, "training step, 32 graphs": 0.400}
REQUIRED_STOCKS_PER_S = {"forward, 1024 graphs": 40e6}
REQUIRED_PEAK_MB = {"training step, 32 graphs": 65.0}
REQUIRED_OF_COPY = {"decision, 10 M rows": 0.8}
MAX_INPUTS = 24


class Clock:
    """Times steps by CUDA events, or by wall clock in a dry run."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.gpu = device == "cuda"

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def warm_up(self, steps: list[Step]) -> None:
        """A few rounds on a side stream, required before a capture."""
        few = (steps * 6)[:6]
        if not self.gpu:
            for step in few[:2]:
                step()
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for step in few:
                step()
        torch.cuda.current_stream().wait_stream(side)
        self.wait()

    def captured(self, steps: list[Step]) -> tuple[list[Step], str]:
        """Replays of the captured steps, or the steps if they cannot be captured, and a text that says which."""
        pool = torch.cuda.graph_pool_handle()
        graphs = []
        try:
            for step in steps:
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1], pool=pool):
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

    def time(self, steps: list[Step], *, graph: bool) -> dict[str, Any]:
        """Median and quartiles; `steps` do equal work on different inputs, so that none finds its input in a cache."""
        seconds = 1.0 if self.gpu else 0.05
        self.warm_up(steps)
        calls, how = self.captured(steps) if graph and self.gpu else (steps, "eager")
        for call in calls:
            call()
        self.wait()
        estimate = max(self.rounds(calls, 1, 3))
        # Long enough for the resolution of the clock, and for launches to run ahead of the device.
        count = max(1, min(20, int(2 / max(estimate, 1e-3))))
        repeats = max(5, min(60, int(1e3 * seconds / (count * max(estimate, 1e-3)))))
        times = self.rounds(calls, count, repeats)
        first, median, third = statistics.quantiles(times, n=4)
        return {"ms": median, "q1_ms": first, "q3_ms": third, "rounds": repeats, "calls": count, "how": how}


def inputs_that_rotate(x: torch.Tensor) -> list[torch.Tensor]:
    """Random inputs like `x` that together exceed the cache, at most ``MAX_INPUTS``."""
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) if x.is_cuda else 0
    count = min(MAX_INPUTS, max(3, -(-2 * cache // max(1, x.numel() * x.element_size()))))
    return [torch.randn_like(x) for _ in range(count)]


class Bench:
    """The cases of one competitor."""

    def __init__(self, competitor: str, dry: bool) -> None:
        self.competitor, self.dry = competitor, dry
        self.device = "cpu" if dry else "cuda"
        self.clock = Clock(self.device)
        # PyG reads sizes from the device, which a capture does not allow.
        self.graph = competitor != "pyg"

    def case(self, copies: int) -> cases.Case:
        return cases.Case(copies=1, steps=4) if self.dry else cases.Case(copies=copies)

    def problem(self, case: cases.Case) -> tuple[torch.nn.Module, torch.Tensor, list[Any]]:
        """Model, input, and edges in the form of this competitor, prepared once where possible."""
        model, (x, *edges) = cases.problem(case, self.competitor, self.device)
        if not self.competitor.startswith("pyg"):
            edges = [hiermt.Graph(edges[0], edges[1], x.size(0))]
        return model, x, edges

    def forward(self, copies: int) -> dict[str, Any]:
        case = self.case(copies)
        model, x, edges = self.problem(case)
        model.eval()

        def on(one: torch.Tensor) -> Step:
            def step() -> None:
                with torch.no_grad():
                    model(one, *edges)

            return step

        inputs = inputs_that_rotate(x)
        result = self.clock.time([on(one) for one in inputs], graph=self.graph)
        return {**result, "inputs": len(inputs), "stocks_per_s": case.stocks / result["ms"] * 1e3}

    def training(self, copies: int) -> dict[str, Any]:
        """A step with Adam, and its memory beyond parameters, gradients and input."""
        case = self.case(copies)
        model, x, edges = self.problem(case)
        model.train()
        signal = torch.randint(0, 2, (x.size(0),), device=self.device)
        direction = torch.randint(0, 2, (x.size(0),), device=self.device)
        mask = signal == 1
        criterion = hiermt.MultiTaskLoss()
        capturable = {"capturable": True} if self.clock.gpu else {}
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, **capturable)

        def step() -> None:
            optimizer.zero_grad(set_to_none=False)
            criterion.terms(*model(x, *edges), signal, direction, mask).total.backward()
            optimizer.step()

        step()
        self.clock.wait()
        memory: dict[str, float] = {}
        if self.clock.gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            self.clock.wait()
            memory = {"peak_mb": (torch.cuda.max_memory_allocated() - before) / 1e6}
        result = self.clock.time([step], graph=self.graph)
        return {**result, "stocks_per_s": case.stocks / result["ms"] * 1e3, **memory}

    def windows(self, shuffle: bool, share: bool) -> dict[str, Any]:
        """A step that gathers 32 windows of a series of 504 days, with days shared or copied."""
        case = self.case(32)
        edges = hiermt.testing.stock_graph(case.nodes, case.edges, isolated=min(3, case.nodes // 20))
        days, steps = (504, case.steps) if not self.dry else (40, case.steps)
        series = torch.randn(case.nodes, days, case.features)
        labels = [torch.randint(0, 2, (case.nodes, days)) for _ in range(2)]
        dataset = data.WindowDataset(series, *edges, steps, *labels).to(self.device)
        loader = data.WindowLoader(dataset, range(days - steps + 1), 4 if self.dry else 32, shuffle=shuffle)
        model = cases.problem(case, self.competitor, self.device)[0].train()
        criterion = hiermt.MultiTaskLoss()
        optimizer = hiermt.training.adam(model)
        planned = loader.plan()[0]

        def step() -> None:
            batch = loader.gather(*planned)
            logits = model(*_inputs.shared_inputs(model, batch, self.device, share))
            assert batch.signal_labels is not None and batch.direction_labels is not None
            signal, direction = batch.signal_labels.reshape(-1), batch.direction_labels.reshape(-1)
            optimizer.zero_grad(set_to_none=False)
            criterion.terms(*(one.reshape(-1, 2) for one in logits), signal, direction, signal == 1).total.backward()
            optimizer.step()

        step()
        self.clock.wait()
        return self.clock.time([step], graph=True)

    def decision(self) -> dict[str, Any]:
        """The decision over ten million rows against a copy of its input in the same run, by bytes moved."""
        rows, hidden = 10_000 if self.dry else 10_000_000, 16
        h = torch.randn(rows, hidden, device=self.device)
        params = [torch.randn(s, device=self.device) for s in ((16, 16), (16,), (2, 16), (2,), (2, 16), (2,))]
        to = torch.empty_like(h)

        def step() -> None:
            with torch.no_grad():
                functional.decision(h, params, 0.5, backend="native")

        copy = self.clock.time([lambda: to.copy_(h)], graph=True)
        ours = self.clock.time([step], graph=True)
        again = self.clock.time([lambda: to.copy_(h)], graph=True)
        # Read: h. Written: two pairs of logits, four probabilities, a prediction of 8 bytes, a confidence.
        moved = rows * (4 * hidden + 8 + 8 + 16 + 8 + 4)
        copied = 2 * h.numel() * h.element_size()
        rate, copy_rate = moved / ours["ms"] / 1e6, copied / min(copy["ms"], again["ms"]) / 1e6
        return {**ours, "gb_s": rate, "copy_gb_s": copy_rate, "of_copy": rate / copy_rate}

    def jobs(self) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
        """All cases, the most important first."""
        found: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("forward, 32 graphs", lambda: self.forward(32)),
            ("training step, 32 graphs", lambda: self.training(32)),
            ("forward, 1 graph", lambda: self.forward(1)),
        ]
        if self.competitor == "native":
            found.append(("decision, 10 M rows", self.decision))
            for order in ("consecutive", "shuffled"):
                for how in ("copied", "shared"):
                    sizes = {"shuffle": order == "shuffled", "share": how == "shared"}
                    found.append((f"training step, 32 {order} windows, {how}", partial(self.windows, **sizes)))
        if not self.competitor.startswith(("twin", "pyg")):
            found.append(("forward, 1024 graphs", lambda: self.forward(1024)))
        return found


def required(name: str) -> dict[str, float]:
    """Required figures of a case, by name."""
    tables = {
        "ms": REQUIRED_MS,
        "stocks_per_s": REQUIRED_STOCKS_PER_S,
        "peak_mb": REQUIRED_PEAK_MB,
        "of_copy": REQUIRED_OF_COPY,
    }
    return {f"required_{key}": table[name] for key, table in tables.items() if name in table}


def main() -> int:
    """Times every case of a competitor; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("competitor")
    parser.add_argument("path", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.competitor, options.dry_run)
    if options.competitor == "native" and (reason := extension.why_not_native(bench.device)):
        print(f"no native operators: {reason}", file=sys.stderr)
        return 1
    figures: list[dict[str, Any]] = []
    for name, job in bench.jobs():
        figure: dict[str, Any] = {"case": name, "competitor": options.competitor, **required(name)}
        figures.append(figure)
        figure.update(_figure_or_error(job))
        print(figure, flush=True)
        with atomic_write(options.path) as temporary:
            temporary.write_text(json.dumps(figures))
        if bench.clock.gpu and (left := _figure_or_error(tidy)):
            print(f"after {name}: {left['error']}", flush=True)
    return 1 if any("error" in figure for figure in figures) else 0


def tidy() -> dict[str, Any]:
    """Frees memory before the next case."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return {}


def _figure_or_error(job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return job()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


if __name__ == "__main__":
    sys.exit(main())
