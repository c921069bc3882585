"""Times a model side by side with the same model in PyG, on the same batch."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hiermt.cli import output
from hiermt.data import WindowBatch
from hiermt.native.dispatch import native
from hiermt.nn import TGCN_HierarchicalMT
from hiermt.nn.loss import MultiTaskLoss
from hiermt.training import adam

NO_PYG = "PyG is not installed, so there is nothing to compare with; run: pip install 'hiermt[pyg]'"


@dataclass(frozen=True)
class Timing:
    """Median seconds of hiermt and of PyG (``None`` without PyG), and the largest difference of the logits."""

    ours: float
    pyg: float | None
    difference: float | None

    def cells(self, what: str, stocks: int) -> list[str]:
        """One row of the table of :func:`comparison`."""
        found = [what, f"{1e3 * self.ours:.2f} ms", f"{stocks / self.ours:,.0f}"]
        if self.pyg is not None:
            found += [f"{1e3 * self.pyg:.1f} ms", f"{stocks / self.pyg:,.0f}", f"{self.pyg / self.ours:.1f} x"]
        return found


def has_pyg() -> bool:
    """Whether PyG can be imported."""
    return importlib.util.find_spec("torch_geometric") is not None


def backend_of(model: TGCN_HierarchicalMT, device: torch.device) -> str:
    """Name of the implementation that runs this model on this device."""
    chosen = model.tgcn_backbone.backend
    return "compiled kernels" if native(chosen, device) else "plain PyTorch"


def flat(batch: WindowBatch) -> tuple[Tensor, Tensor, Tensor | None]:
    """A batch as PyG has it: ``x [B * S, T, F]`` and one copy of the edges per window."""
    copies, stocks = batch.x.shape[:2]
    shift = torch.arange(copies, dtype=torch.int64, device=batch.x.device)
    shift = shift.repeat_interleave(batch.edge_index.size(1)) * stocks
    weight = None if batch.edge_weight is None else batch.edge_weight.repeat(copies)
    return batch.x.flatten(0, 1), batch.edge_index.repeat(1, copies) + shift, weight


def compare_forward(model: TGCN_HierarchicalMT, batch: WindowBatch, seconds: float = 1.0) -> Timing:
    """Times the forward of a batch, in evaluation mode and without gradients."""
    model.eval()
    with torch.no_grad():
        ours = model(batch.x, batch.graph)[0]
        own = median_time(lambda: model(batch.x, batch.graph), batch.x.device, seconds)
        if not has_pyg():
            return Timing(own, None, None)
        from hiermt.testing import pyg

        other, arguments = pyg.like(model).eval(), flat(batch)
        theirs = other(*arguments)[0]
        other_time = median_time(lambda: other(*arguments), batch.x.device, seconds)
    return Timing(own, other_time, float((ours.reshape(-1, 2) - theirs).abs().max()))


def compare_training(model: TGCN_HierarchicalMT, batch: WindowBatch, seconds: float = 1.0) -> Timing:
    """Times a training step: forward, loss, backward, Adam. Trains copies, not the model given."""
    ours = TGCN_HierarchicalMT(**model.config, backend=model.tgcn_backbone.backend).to(batch.x.device)
    ours.load_state_dict(model.state_dict())
    own = median_time(_step(ours, (batch.x, batch.graph), batch), batch.x.device, seconds)
    if not has_pyg():
        return Timing(own, None, None)
    from hiermt.testing import pyg

    theirs = _step(pyg.like(model).train(), flat(batch), batch)
    return Timing(own, median_time(theirs, batch.x.device, seconds), None)


def comparison(model: TGCN_HierarchicalMT, batch: WindowBatch, seconds: float) -> tuple[str, dict[str, Timing]]:
    """Times forward and training step beside PyG's: a table as text, and the times."""
    found = {
        "forward": compare_forward(model, batch, seconds),
        "training step": compare_training(model, batch, seconds),
    }
    rows = [timing.cells(what, batch.num_nodes) for what, timing in found.items()]
    columns = ("", "hiermt", "stocks/s", "PyG eager", "stocks/s", "faster")[: len(rows[0])]
    difference = found["forward"].difference
    note = NO_PYG if difference is None else f"largest difference between the logits of the two: {difference:.1e}"
    return f"{output.table(columns, rows)}\n{note}", found


def median_time(function: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of a call, over calls that together take about `seconds`; the first is not counted."""
    began = time.perf_counter()
    function()
    times: list[float] = []
    # On a busy machine, fewer than three calls may have to suffice.
    while not times or (
        (len(times) < 3 or sum(times) < seconds) and len(times) < 200 and time.perf_counter() - began < 6 * seconds
    ):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _step(model: torch.nn.Module, arguments: tuple[object, ...], batch: WindowBatch) -> Callable[[], None]:
    optimizer = adam(model)
    criterion = MultiTaskLoss()
    assert batch.signal_labels is not None and batch.direction_labels is not None
    signal, direction = batch.signal_labels.reshape(-1), batch.direction_labels.reshape(-1)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        signal_logits, direction_logits = model(*arguments)
        loss = criterion.terms(signal_logits, direction_logits, signal, direction, signal == 1).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
