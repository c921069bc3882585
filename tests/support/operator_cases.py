"""Small problems for every operator, native against twin, on any device.

Everything is made on the CPU and copied, so that on a GPU no kernel but ours writes what ours read. compute-sanitizer
runs this file as a script, where nothing else would be worth its time::

    PYTHONPATH=tests python -m support.operator_cases [--device cuda] [--dtypes float32 bfloat16]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hiermt import reference
from hiermt.graph import Graph
from hiermt.testing import assert_close, stock_graph
from support.single_convolutions import ops
from support.single_convolutions import reference as twins

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Csr(list):
    """A CSR as operators take it: everything on the device but the blocks."""


class OperatorCase(NamedTuple):
    """Arguments of one call; those of floating point are the leaves that are differentiated, if `gradient`."""

    op: str
    label: str
    arguments: tuple[Any, ...]
    gradient: bool = True

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"


class Outcome(NamedTuple):
    """What came out, on the CPU: floating point in one list, exact values in the other."""

    values: list[Tensor]
    gradients: list[Tensor | None]
    exact: list[Tensor]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


_generator = torch.Generator()


def _gates(hidden: int, channels: int) -> list[Tensor]:
    columns = channels + 2 * hidden
    return [_random(hidden, columns) * columns**-0.5 if i % 2 == 0 else _random(hidden) for i in range(6)]


def _conv(hidden: int, channels: int, gat: bool) -> list[Tensor]:
    matrix = [_random(hidden, channels) * channels**-0.5, _random(hidden)]
    if not gat:
        return matrix
    second = [_random(hidden, channels) * channels**-0.5, _random(hidden)]
    return [*matrix, *second, _random(hidden) * hidden**-0.5, _random(hidden)]


def _entries(nodes: int, gat: bool) -> tuple[Csr, Tensor]:
    edge_index, weight = stock_graph(nodes, 4 * nodes, 2)
    loop_and_duplicate = torch.tensor([[0, 1], [0, edge_index[1, 0]]])
    edge_index = torch.cat([edge_index, loop_and_duplicate, edge_index[:, :1]], dim=1)
    graph = Graph(edge_index, torch.cat([weight, weight[:3]]), nodes, backend="reference")
    rule = reference.GATV2_RULE if gat else reference.GCN_RULE
    entries = graph.csr(rule, True, torch.float64)
    assert entries.weight is not None
    return Csr([*entries.tensors[:5], torch.tensor([0, nodes], dtype=torch.int32)]), entries.weight.float()


def _graph_cases() -> Iterator[OperatorCase]:
    edge_index, _ = stock_graph(60, 300, 3)
    for rule in (reference.GATV2_RULE, reference.GCN_RULE):
        yield OperatorCase("graph_prepare", f"rule{rule}", (edge_index, 60, rule), False)


def _conv_cases() -> Iterator[OperatorCase]:
    nodes, copies, steps, channels = 13, 2, 3, 13
    for gat in (True, False):
        csr, weight = _entries(nodes, gat)
        for hidden, activation in ((16, 1), (64, 2), (5, 0)):
            x, params = _random(copies * nodes, steps, channels), _conv(hidden, channels, gat)
            label = f"h{hidden}"
            if gat:
                yield OperatorCase("gatv2_conv", label, (x, csr, weight, params, _random(hidden), activation))
            else:
                yield OperatorCase("gcn_conv", label, (x, csr, weight, params, activation))


def _scan_cases() -> Iterator[OperatorCase]:
    nodes, steps, channels = 9, 4, 13
    for hidden in (8, 16, 32, 64, 5):
        x, g, gates = _random(nodes, steps, channels), _random(nodes, steps, hidden), _gates(hidden, channels)
        yield OperatorCase("gated_scan", f"h{hidden}", (x, g, _random(nodes, hidden), gates, hidden != 32))
    for hidden in (16, 5):
        x, g, starts = _random(nodes, 14, channels), _random(nodes, 14, hidden), torch.tensor([9, 0, 2])
        arguments = (x, g, starts, steps, _gates(hidden, channels), hidden != 5)
        yield OperatorCase("gated_scan_windows", f"h{hidden}", arguments)


def _layer_cases() -> Iterator[OperatorCase]:
    nodes, copies, channels = 13, 2, 13
    for gat, hidden, conv_layers, between, steps, sequence in (
        (True, 16, 2, True, 5, True),
        (True, 32, 1, False, 3, False),
        (True, 64, 2, True, 2, True),
        (False, 16, 2, True, 5, True),
        (False, 8, 1, False, 3, False),
        (False, 5, 2, True, 2, True),
    ):
        csr, weight = _entries(nodes, gat)
        conv: list[Tensor] = []
        for k in range(conv_layers):
            conv += _conv(hidden, channels if k == 0 else hidden, gat)
            conv += [_random(hidden)] if gat else []
        x, gates = _random(copies * nodes, steps, channels), _gates(hidden, channels)
        arguments = (x, csr, weight, conv, gates, conv_layers, gat, gat, between, sequence)
        label = f"{'gat' if gat else 'gcn'}{conv_layers}-h{hidden}"
        yield OperatorCase("tgcn_layer", label, arguments)
        series = _random(nodes, steps + 7, channels)
        windows = (torch.tensor([5, 0, 7, 1]), steps)
        yield OperatorCase("tgcn_layer", f"{label}-windows", (series, *arguments[1:], *windows))


def _head_cases() -> Iterator[OperatorCase]:
    for rows, hidden, features in ((70, 16, 16), (9, 37, 5)):
        shapes = ((features, hidden), (features,), (2, features), (2,), (2, features), (2,))
        params = [_random(*shape) * 0.3 for shape in shapes]
        yield OperatorCase("decision", f"h{hidden}", (_random(rows, hidden), *params, 0.5))
    logits = (_random(70, 2), _random(70, 2))
    yield OperatorCase("decision_from_logits", "", (*logits, 0.4), False)
    targets = [torch.arange(70) % 2, torch.arange(70) // 2 % 2]
    yield OperatorCase("multitask_loss", "", (*logits, *targets, torch.arange(70) % 3 == 0, 0.7))


def cases() -> list[OperatorCase]:
    """Every operator, its specialisations and one size that has none."""
    _generator.manual_seed(0)
    makers = (_graph_cases, _conv_cases, _scan_cases, _layer_cases, _head_cases)
    return [case for make in makers for case in make()]


def run(case: OperatorCase, native: bool, device: str, dtype: torch.dtype) -> Outcome:
    """Calls the operator or its twin on copies of the arguments, and differentiates what has a gradient."""
    leaves: list[Tensor] = []

    def place(value: Any) -> Any:
        if isinstance(value, Csr):
            return [one.to(device) for one in value[:5]] + [value[5]]
        if isinstance(value, list):
            return [place(one) for one in value]
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point():
            return value.to(device)
        if not value.is_contiguous():  # an overlapping view of what is copied whole
            whole = value.as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
            whole = whole.to(dtype).to(device)
            return whole.as_strided(value.size(), value.stride(), value.storage_offset())
        # A copy: cases share tensors, and each wants leaves of its own.
        leaves.append(value.clone().to(dtype).to(device).requires_grad_(case.gradient))
        return leaves[-1]

    arguments = [place(argument) for argument in case.arguments]
    found = getattr(ops if native else twins, case.op)(*arguments)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    if case.op == "graph_prepare":  # how nodes are cut into blocks differs
        outputs = outputs[:6]
    differentiable = [one for one in outputs if one.requires_grad]
    gradients: list[Tensor | None] = []
    if case.gradient:
        seeds = [torch.linspace(-1, 1, max(one.numel(), 2))[: one.numel()].reshape(one.shape) for one in differentiable]
        given = [seed.to(dtype).to(device) for seed in seeds]
        gradients = list(torch.autograd.grad(differentiable, leaves, given, allow_unused=True))
    values = [one.detach().cpu() for one in outputs if one.is_floating_point()]
    exact = [one.cpu() for one in outputs if not one.is_floating_point()]
    return Outcome(values, [None if one is None else one.cpu() for one in gradients], exact)


def compare(case: OperatorCase, device: str, dtype: torch.dtype) -> None:
    """The native operator against the twin in float64, which reads the same rounded numbers."""
    _same(run(case, True, device, dtype), run(_rounded(case, dtype), False, "cpu", torch.float64), dtype)


def _rounded(case: OperatorCase, dtype: torch.dtype) -> OperatorCase:
    def round_one(value: Any) -> Any:
        if isinstance(value, Csr):
            return value
        if isinstance(value, list):
            return [round_one(one) for one in value]
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return case._replace(arguments=tuple(round_one(argument) for argument in case.arguments))


def _same(found: Outcome, expected: Outcome, dtype: torch.dtype) -> None:
    for one, truth in zip(found.values, expected.values, strict=True):
        assert_close(one.double(), truth, dtype=dtype)
    for i, (gradient, exact) in enumerate(zip(found.gradients, expected.gradients, strict=True)):
        assert (gradient is None) == (exact is None)
        if gradient is not None and exact is not None:
            assert_close(gradient.double(), exact, gradient=True, scaled=True, dtype=dtype, message=f"gradient {i}")
    for one, truth in zip(found.exact, expected.exact, strict=True):
        # A decision on a threshold falls to either side where numbers are coarse.
        assert one.shape == truth.shape
        assert dtype not in (torch.float32, torch.float64) or torch.equal(one, truth)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    options = parser.parse_args()
    every = cases()
    wrong = [why for name in options.dtypes for case in every if (why := _why_wrong(case, options.device, name))]
    print("\n".join([*wrong, f"{len(options.dtypes) * len(every)} calls, {len(wrong)} failed"]))
    return 1 if wrong else 0


def _why_wrong(case: OperatorCase, device: str, dtype: str) -> str | None:
    try:
        compare(case, device, getattr(torch, dtype))
    except Exception as error:
        return f"{case} {dtype}: {type(error).__name__}: {str(error)[:400]}"
    return None


if __name__ == "__main__":
    sys.exit(main())
