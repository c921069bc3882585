"""Forward and every gradient of the model at the headline shape, by norms, against the twin in float64.

python -m on_gpu.headline [--dry-run]

The twin in float32 shows what PyTorch itself loses to rounding.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import hiermt
from on_gpu.lines import emit
from on_gpu.workload import Workload, why_not_native

# Relative error of a tensor in the norm. Each has to meet the first, or twice the error of the twin in float32, which
# is larger where an argument of leaky_relu lies on its kink within rounding.
LIMIT = 2e-5


def results(model: nn.Module, x: Tensor, edges: Tensor, weights: Tensor, labels: list[Tensor]) -> dict[str, Tensor]:
    """Logits, loss, and the gradients of x, the edge weights and every parameter."""
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    signal, direction = model(x, edges, weights)
    loss = hiermt.MultiTaskLoss().terms(signal, direction, *labels, labels[0] == 1).total
    named = {"x": x, "edge_weight": weights, **dict(model.named_parameters())}
    gradients = torch.autograd.grad(loss, list(named.values()))
    values = {"signal_logits": signal, "direction_logits": direction, "loss": loss.reshape(1)}
    values |= {f"gradient of {name}": one for name, one in zip(named, gradients, strict=True)}
    return {name: value.detach() for name, value in values.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares; returns 1 if a tensor is off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    if reason := why_not_native(options.dry_run):
        print(f"no native operators: {reason}", file=sys.stderr)
        return 1
    work = Workload("native", dry=options.dry_run)
    assert work.graph is not None and work.graph.edge_weight is not None
    edges, weights, model = work.graph.edge_index, work.graph.edge_weight, work.model
    twin = copy.deepcopy(model)
    twin.backend = "reference"  # type: ignore[assignment]
    exact_twin = copy.deepcopy(twin).double()
    exact = results(exact_twin, work.x.double(), edges, weights.double(), work.labels)
    rounded = results(twin, work.x, edges, weights, work.labels)
    found = results(model, work.x, edges, weights, work.labels)
    again = results(model, work.x, edges, weights, work.labels)
    failed = 0
    for name, truth in exact.items():
        norm = max(float(truth.norm()), 1e-30)
        error, theirs = (float((one[name].double() - truth).norm()) / norm for one in (found, rounded))
        facts = {"name": name, "shape": list(truth.shape), "norm": norm, "off": error, "twin_off": theirs}
        if not error <= max(LIMIT, 2 * theirs):
            facts["error"] = f"off by {error:.1e} of its norm, the twin in float32 by {theirs:.1e}"
        if not torch.equal(found[name], again[name]):
            facts["error"] = "a second run gives other bits"
        failed += "error" in facts
        emit("check", **facts)
    print(f"{len(exact)} tensors, {failed} failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
