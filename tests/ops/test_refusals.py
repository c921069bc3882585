"""Arguments that an operator called by hand refuses by name, before anything is read or written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hiermt.native import extension
from support.problems import Maker, Problem, Stack

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from hiermt import ops

CONV = Maker().conv("stock", (2, 3, 2, 5), Stack(1), 0)
BARE = Maker().conv("stock", (2, 3, 2, 5), Stack(1, edge=False), 0)
GCN = Maker().conv("stock", (2, 3, 2, 5), Stack(1, False), 0)
LAYER = Maker().layer("stock", (2, 3, 2, 5), Stack(), True)
LAYER_WINDOWS = Maker().layer("stock", (1, 12, 2, 5), Stack(), True, [6, 0, 1], 5)
DECIDED = Maker().decided(LAYER, 4)
SCAN = Maker().scan((4, 3, 2, 5), True, True)
WINDOWS = Maker().windows("any", (3, 40, 5, 4, 3), [0, 12, 35], True)
HEADS = Maker().heads(5, 6, 4)
LOGITS = Maker().logits(5, 0.5)
LOSS = Maker().loss(10, "plain", True)


def csr_with(place: int, value: Any) -> list[torch.Tensor]:
    return [value if i == place else one for i, one in enumerate(CONV.arguments[1])]


def without_last(tensors: Any) -> Any:
    return tensors[:-1]


def changed(tensors: Any, place: int, value: Any) -> list[Any]:
    return [value if i == place else one for i, one in enumerate(tensors)]


rand = torch.randn
CASES: list[tuple[Problem, dict[str, Any], str]] = [
    (CONV, {"x": rand(40, 3)}, r"x: expected a shape \[N, T, F\], got \[40, 3\]"),
    (CONV, {"x": rand(41, 3, 2)}, "x: expected a multiple of the graph's 20 nodes in dimension 0, got 41"),
    (CONV, {"x": rand(40, 3, 3)}, r"lin_l.weight: expected a shape \[H, 3\], got \[5, 2\]"),
    (CONV, {"x": rand(40, 3, 2).double()}, ".*expected dtype Double, got Float"),
    (CONV, {"csr": CONV.arguments[1][:5]}, "csr: expected 6 tensors, got 5"),
    (CONV, {"csr": csr_with(0, CONV.arguments[1][0].long())}, "rowptr: expected dtype Int, got Long"),
    (CONV, {"edge_weight": rand(3)}, r"edge_weight: expected a shape \[\d+\], got \[3\]"),
    (CONV, {"conv_params": CONV.arguments[3][:4]}, "conv_params: expected 1 times 2 .GCN., 6 .GATv2. or 7"),
    (CONV, {"activation": 4}, "activation: expected 0 .none."),
    (BARE, {"edge_weight": CONV.arguments[2]}, "edge_weight: needs a GATv2 with an edge term"),
    (GCN, {"edge_weight": None}, "edge_weight: a GCN needs the norm"),
    (GCN, {"conv_params": [rand(5, 3), rand(5)]}, r"lin.weight: expected a shape \[H, 2\]"),
    (LAYER, {"conv_params": LAYER.arguments[3][:5]}, "conv_params: expected 2 times .* tensors, got 5"),
    (LAYER, {"gate_params": without_last(LAYER.arguments[4])}, "gates: expected 6 tensors, got 5"),
    (LAYER, {"gate_params": changed(LAYER.arguments[4], 0, rand(5, 11))}, r"u.weight: expected a shape \[5, 12\]"),
    (LAYER, {"conv_layers": 0}, "conv_layers: expected at least 1, got 0"),
    (LAYER_WINDOWS, {"x": rand(40, 12, 2)}, r"x: expected a shape \[20, D, 2\]"),
    (LAYER_WINDOWS, {"starts": torch.tensor([8])}, ".*outside the days"),
    (LAYER_WINDOWS, {"starts": torch.tensor([-1])}, ".*outside the days"),
    (LAYER_WINDOWS, {"starts": torch.tensor([1], dtype=torch.int32)}, "starts: expected dtype Long"),
    (LAYER_WINDOWS, {"steps": 13}, "steps: expected a length"),
    (DECIDED, {"x": rand(40, 3)}, r"x: expected a shape \[N, T, F\], got \[40, 3\]"),
    (DECIDED, {"starts": torch.tensor([8])}, r"x: expected a shape \[20, D, 2\]"),
    (DECIDED, {"h0": rand(4, 5)}, r"h0: expected a shape \[40, 5\], got \[4, 5\]"),
    (DECIDED, {"head_params": without_last(DECIDED.arguments[5])}, "head_params: expected 6 tensors, got 5"),
    (DECIDED, {"head_params": changed(DECIDED.arguments[5], 0, rand(4, 6))}, r"out_weight: expected a shape \[K, 5\]"),
    (DECIDED, {"head_params": changed(DECIDED.arguments[5], 1, rand(3))}, r"out_bias: expected a shape \[4\]"),
    (
        DECIDED,
        {"head_params": changed(DECIDED.arguments[5], 2, rand(2, 5))},
        r"signal_weight: expected a shape \[2, 4\]",
    ),
    (DECIDED, {"head_params": changed(DECIDED.arguments[5], 3, rand(2).double())}, "signal_bias: expected dtype Float"),
    (DECIDED, {"head_params": changed(DECIDED.arguments[5], 4, rand(3, 4))}, r"direction_weight: expected a shape"),
    (DECIDED, {"head_params": changed(DECIDED.arguments[5], 5, rand(3))}, r"direction_bias: expected a shape \[2\]"),
    (DECIDED, {"outputs": -1}, r"outputs: expected bits in \[0, 15\]"),
    (SCAN, {"x": rand(4, 3)}, r"x: expected a shape \[N, T, F\], got \[4, 3\]"),
    (SCAN, {"g": rand(4, 2, 5)}, r"g: expected a shape \[4, 3, H\], got \[4, 2, 5\]"),
    (SCAN, {"g": rand(4, 3, 5).double()}, "g: expected dtype Float, got Double"),
    (SCAN, {"h0": rand(4, 6)}, r"h0: expected a shape \[4, 5\], got \[4, 6\]"),
    (SCAN, {"gates": without_last(SCAN.arguments[3])}, "gates: expected 6 tensors, got 5"),
    (SCAN, {"gates": changed(SCAN.arguments[3], 0, rand(5, 11))}, r"u.weight: expected a shape \[5, 12\]"),
    (SCAN, {"x": rand(4, 3, 2).half()}, "g: expected dtype Half"),
    (WINDOWS, {"g": rand(3, 39, 3)}, r"g: expected a shape \[3, 40, H\]"),
    (WINDOWS, {"h0": rand(3, 3)}, r"h0: expected a shape \[9, 3\]"),
    (WINDOWS, {"starts": torch.tensor([36])}, ".*outside the days"),
    (WINDOWS, {"starts": torch.tensor([0], dtype=torch.int32)}, "starts: expected dtype Long"),
    (WINDOWS, {"steps": 41}, "steps: expected a length"),
    (HEADS, {"h": rand(5)}, r"h: expected a shape \[N, H\], got \[5\]"),
    (HEADS, {"out_weight": rand(4, 5)}, r"out_weight: expected a shape \[K, 6\], got \[4, 5\]"),
    (HEADS, {"out_bias": rand(3)}, r"out_bias: expected a shape \[4\], got \[3\]"),
    (HEADS, {"signal_weight": rand(3, 4)}, r"signal_weight: expected a shape \[2, 4\], got \[3, 4\]"),
    (HEADS, {"direction_bias": rand(2).double()}, "direction_bias: expected dtype Float, got Double"),
    (HEADS, {"h": torch.ones(5, 6).int()}, "out_weight: expected dtype Int, got Float"),
    (HEADS, {"outputs": 16}, r"outputs: expected bits in \[0, 15\]"),
    (LOGITS, {"direction_logits": rand(4, 2)}, r"direction_logits: expected a shape \[5, 2\], got \[4, 2\]"),
    (LOSS, {"mask": torch.ones(3, dtype=torch.bool)}, "mask: expected a shape"),
    (LOSS, {"signal_targets": torch.ones(10, dtype=torch.int32)}, "signal_targets: expected dtype Long"),
]


@pytest.mark.hostile("wrong-tensor", "forged-call")
@pytest.mark.parametrize(("problem", "changes", "message"), CASES, ids=[f"{c[0].op}-{c[2]}" for c in CASES])
def test_a_wrong_argument_is_named(problem: Problem, changes: dict[str, Any], message: str) -> None:
    overload = getattr(torch.ops.hiermt, problem.op).default
    names = [argument.name for argument in overload._schema.arguments]
    assert set(changes) <= set(names)
    positional = dict(zip(names, problem.arguments, strict=False))
    arguments = [changes.get(name, value) for name, value in positional.items()]
    options = problem.options | {name: value for name, value in changes.items() if name not in positional}
    error = IndexError if "outside the days" in message else RuntimeError
    with torch.no_grad(), pytest.raises(error, match=f"hiermt::{problem.op}: {message}"):
        getattr(ops, problem.op)(*arguments, **options)


@pytest.mark.hostile("dtypes")
def test_dtypes_that_no_kernel_takes_are_named() -> None:
    for dtype, message in (("int32", "expected dtype Float, Double, BFloat16 or Half"), ("half", "got Half")):
        arguments = [one.to(getattr(torch, dtype)) for one in HEADS.arguments]
        with pytest.raises(RuntimeError, match=f"hiermt::decision: h: .*{message}"):
            ops.decision(*arguments, 0.5)


def refuses_csr(csr: list[torch.Tensor], message: str) -> None:
    x, _, weight, params = CONV.arguments
    with pytest.raises(RuntimeError, match=message):
        ops.conv_stack(x, csr, weight, params, conv_layers=1, activation=0)


@pytest.mark.hostile("forged-call")
def test_forged_lists_of_a_graph_are_refused() -> None:
    for index, name in enumerate(["rowptr", "col", "colptr", "row", "csr2csc"]):
        for position, value in ((0, -1), (0, 1 << 30), (1, 1 << 20)):
            forged = CONV.arguments[1][index].clone()
            forged[position] = value
            refuses_csr(csr_with(index, forged), f"{name}: expected (offsets|values)")


@pytest.mark.parametrize("blocks", [[], [0], [0, 10**6], [0, 2], [1, 20], [0, 5, 3]], ids=str)
def test_blocks_that_do_not_cover_the_nodes_are_refused(blocks: list[int]) -> None:
    refuses_csr(csr_with(5, torch.tensor(blocks, dtype=torch.int32)), "schedule")


def test_blocks_that_an_edge_crosses_are_refused() -> None:
    refuses_csr(csr_with(5, torch.arange(21, dtype=torch.int32)), "col: expected values")
