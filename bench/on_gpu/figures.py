"""Times the cases of one competitor, the most important first.

python -m on_gpu.figures native [--dry-run]

After a fault of a kernel a new process times the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import cases
import torch

import hiermt
from hiermt import data, functional
from hiermt.nn import inputs
from hiermt.training.capture import CapturedSteps
from hiermt.training.loop import batch_losses
from hiermt.training.tasks import TwoHeaded
from on_gpu.clock import Clock, Step
from on_gpu.device import computes, run_rest
from on_gpu.lines import emit
from on_gpu.workload import HEADLINE, Workload, why_not_native

# Required milliseconds on an H100; the decision is compared with a copy instead.
REQUIRED_MS = {"forward, 32 graphs": 0.080, "forward, 1 graph": 0.040, "training step, 32 graphs": 0.400}
REQUIRED_STOCKS_PER_S = {"forward, 1024 graphs": 40e6}
REQUIRED_PEAK_MB = {"training step, 32 graphs": 65.0}
REQUIRED_OF_COPY = {"decision, 10 M rows": 0.8}
MAX_INPUTS = 24

Job = Callable[[], dict[str, Any]]


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
        self.clock = Clock(self.device, 0.05 if dry else 1.0)
        # PyG reads sizes from the device, which a capture does not allow.
        self.graph = competitor != "pyg"

    def workload(self, copies: int) -> Workload:
        """The problem. Raises unless a native model runs from the template of its graph."""
        work = Workload(self.competitor, copies, self.dry)
        if self.competitor == "native" and (reason := work.why_no_template()):
            raise RuntimeError(f"the template was not found: {reason}")
        return work

    def forward(self, copies: int) -> dict[str, Any]:
        work = self.workload(copies)
        work.model.eval()

        def on(one: torch.Tensor) -> Step:
            def step() -> None:
                with torch.no_grad():
                    work.model(one, *work.edges)

            return step

        rotated = inputs_that_rotate(work.x)
        result = self.clock.time([on(one) for one in rotated], graph=self.graph)
        return {**result, "inputs": len(rotated), "stocks_per_s": work.case.stocks / result["ms"] * 1e3}

    def training(self, copies: int) -> dict[str, Any]:
        """A step with Adam, and its memory beyond parameters and input."""
        work = self.workload(copies)
        optimizer = work.optimizer()
        step = work.step(optimizer)
        step()
        self.clock.wait()
        memory: dict[str, float] = {}
        if self.clock.gpu:
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            self.clock.wait()
            memory = {"peak_mb": (torch.cuda.max_memory_allocated() - before) / 1e6}
        # The gradients of the warm-up lie outside the memory of the capture.
        clear = partial(optimizer.zero_grad, set_to_none=True)
        result = self.clock.time([step], graph=self.graph, before_capture=clear)
        return {**result, "stocks_per_s": work.case.stocks / result["ms"] * 1e3, **memory}

    def windows(self, shuffle: bool, share: bool) -> dict[str, Any]:
        """The step of the training loop on 32 windows of a series of 504 days, with days shared or copied."""
        case = cases.Case(copies=1, steps=4) if self.dry else cases.Case()
        edges = hiermt.testing.stock_graph(case.nodes, case.edges, isolated=min(3, case.nodes // 20))
        days = 40 if self.dry else 504
        series = torch.randn(case.nodes, days, case.features)
        labels = [torch.randint(0, 2, (case.nodes, days)) for _ in range(2)]
        dataset = data.WindowDataset(series, *edges, case.steps, *labels).to(self.device)
        size = 4 if self.dry else HEADLINE
        loader = data.WindowLoader(dataset, range(days - case.steps + 1), size, shuffle=shuffle)
        model = cases.problem(case, self.competitor, self.device)[0].train()
        task, optimizer = TwoHeaded().to(self.device), hiermt.training.adam(model)

        def losses(batch: data.WindowBatch) -> torch.Tensor:
            given = inputs.shared_inputs(model, batch, self.device, share)
            return batch_losses(task, model(*given), batch, optimizer)

        planned = [one for one in loader.plan() if one.starts.numel() == size]
        if not self.clock.gpu:
            return {**self.clock.timed([lambda: losses(loader.gather(*planned[0]))]), "how": "eager"}
        captured = CapturedSteps(loader, optimizer, losses)
        for _ in range(5):
            captured.run(planned[0])
        timed = self.clock.timed([partial(captured.run, one) for one in planned])
        return {**timed, "how": "graph replay" if captured.captured else "eager"}

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

    def jobs(self) -> list[tuple[str, Job]]:
        """All cases, the most important first."""
        found: list[tuple[str, Job]] = [
            ("forward, 32 graphs", partial(self.forward, HEADLINE)),
            ("training step, 32 graphs", partial(self.training, HEADLINE)),
            ("forward, 1 graph", partial(self.forward, 1)),
        ]
        if self.competitor == "native":
            found.append(("forward, 1024 graphs", partial(self.forward, 1024)))
            for order in ("consecutive", "shuffled"):
                for how in ("shared", "copied"):
                    job = partial(self.windows, shuffle=order == "shuffled", share=how == "shared")
                    found.append((f"training step, 32 {order} windows, {how}", job))
            found.append(("decision, 10 M rows", self.decision))
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


def main(arguments: list[str] | None = None) -> int:
    """Times every case of a competitor and hands each over at once; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("competitor", choices=("native", "pyg", "twin"))
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--begin", type=int, default=0, help="number of the first case")
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(words)
    if options.competitor == "native" and (reason := why_not_native(options.dry_run)):
        print(f"no native operators: {reason}", file=sys.stderr)
        return 1
    bench = Bench(options.competitor, options.dry_run)
    failed = False
    for i, (name, job) in enumerate(bench.jobs()):
        if i < options.begin:
            continue
        figure = {"case": name, "competitor": options.competitor, **required(name)}
        try:
            figure.update(job())
            if bench.clock.gpu:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        except Exception as error:
            figure["error"] = f"{type(error).__name__}: {error}"[:500]
        failed |= "error" in figure
        emit("figure", **figure)
        if "error" in figure and not computes(bench.device):
            return run_rest("on_gpu.figures", words, i + 1) or 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
