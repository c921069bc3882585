"""The CUDA kernels, compiled for the host: values and gradients of the twins, and what a GPU would punish."""

from __future__ import annotations

import pytest
import torch

from hiermt import reference
from hiermt.testing import assert_close
from simt.cases import (
    Case,
    Problem,
    ScanCase,
    assert_gradients,
    conv_arguments,
    conv_backward,
    conv_forward,
    make,
    scan_both,
    with_dtypes,
)
from simt.harness import SimtFault, compiler, run
from simt.layers import LayerCase, layer_both, layer_forward

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++ on x86-64")

FAULTS = {
    1: "simt: divergence",
    2: "simt: divergence",
    3: "simt: divergence",
    4: "simt: divergence",
    5: "heap-buffer-overflow",
    6: "heap-buffer-overflow",
    9: "signed integer overflow",
    10: "simt: shared memory",
}


def run_fault(fault: int, order: int = 0) -> torch.Tensor:
    source = torch.arange(64, dtype=torch.float32)
    (out,) = run(
        "fault", torch.float32, [fault, 64], [source], [((64,), torch.float32)], {"HIERMT_SIMT_ORDER": str(order)}
    )
    assert out is not None
    return out


@pytest.mark.parametrize("fault", FAULTS)
def test_detector_fires(fault: int) -> None:
    with pytest.raises(SimtFault, match=FAULTS[fault]):
        run_fault(fault)


def test_a_kernel_without_fault_passes_in_every_order() -> None:
    source = torch.arange(64, dtype=torch.float32)
    expected = source.roll(-1)
    expected = expected + expected.reshape(-1, 2).flip(1).reshape(-1)
    for order in (0, 1, 2):
        assert torch.equal(run_fault(0, order), expected)


def test_uninitialised_shared_memory_shows() -> None:
    assert run_fault(7).isnan().any()


def test_a_race_depends_on_the_order() -> None:
    assert not torch.equal(run_fault(8, 1).nan_to_num(), run_fault(8, 2).nan_to_num())


GATV2_CASES = [
    Case(hidden=16),
    Case(hidden=8, copies=2),
    Case(hidden=32, steps=3),
    Case(hidden=64, steps=2, channels=5),
    Case(hidden=5, activation=2),
    Case(hidden=100, steps=2, channels=40, activation=0),
    Case(hidden=256, steps=1, nodes=6, edges=10),
    Case(hidden=1, channels=1),
    Case(hidden=16, weighted=False, layout="strided"),
    Case(hidden=16, layout="shared", copies=3),
    Case(hidden=16, nodes=1, edges=0),
    Case(hidden=16, nodes=50, edges=600, steps=1),
]


@with_dtypes(GATV2_CASES)
def test_gatv2_conv(case: Case, dtype: torch.dtype) -> None:
    out, expected = conv_forward(case, dtype, gat=True)
    assert_close(out.double(), expected, dtype=dtype)


@with_dtypes(GATV2_CASES)
def test_gatv2_conv_backward(case: Case, dtype: torch.dtype) -> None:
    assert_gradients(conv_backward(case, dtype, gat=True), dtype)


GCN_CASES = [case for case in GATV2_CASES if case.weighted]


@with_dtypes(GCN_CASES)
def test_gcn_conv(case: Case, dtype: torch.dtype) -> None:
    out, expected = conv_forward(case, dtype, gat=False)
    assert_close(out.double(), expected, dtype=dtype)


@with_dtypes(GCN_CASES)
def test_gcn_conv_backward(case: Case, dtype: torch.dtype) -> None:
    assert_gradients(conv_backward(case, dtype, gat=False), dtype)


SCAN_CASES = [
    ScanCase(hidden=16),
    ScanCase(hidden=8, nodes=9, initial=True),
    ScanCase(hidden=32, last=True, channels=1),
    ScanCase(hidden=64, nodes=5, steps=3),
    ScanCase(hidden=5, copies=3, initial=True, last=True),
    ScanCase(hidden=1, nodes=3, channels=40),
    ScanCase(hidden=100, nodes=3, steps=2, initial=True),
    ScanCase(hidden=256, nodes=2, steps=2, channels=2),
    ScanCase(hidden=16, steps=1, nodes=1),
]


@with_dtypes(SCAN_CASES)
def test_gated_scan(case: ScanCase, dtype: torch.dtype) -> None:
    scan_both(case, dtype)


def test_gated_scan_without_room_for_the_weights_in_shared_memory() -> None:
    scan_both(ScanCase(hidden=40, nodes=3, steps=2), torch.float32, {"HIERMT_SIMT_SHARED_BYTES": "16384"})


def prepare(edge_index: torch.Tensor, nodes: int, rule: int, order: int = 0) -> list[torch.Tensor]:
    entries = edge_index.size(1) + nodes
    ints = [((nodes + 1,), torch.int32), ((entries,), torch.int32)]
    outputs = [*ints, ((entries,), torch.int64), ints[0], ints[1], ints[1]]
    integers = [nodes, edge_index.size(1), rule]
    return run("graph_prepare", edge_index.dtype, integers, [edge_index], outputs, {"HIERMT_SIMT_ORDER": str(order)})


@pytest.mark.parametrize("rule", [reference.GATV2_RULE, reference.GCN_RULE])
@pytest.mark.parametrize(
    ("nodes", "edges", "dtype"),
    [(9, 30, torch.int64), (9, 30, torch.int32), (1, 3, torch.int64), (5, 0, torch.int32), (1500, 700, torch.int64)],
)
def test_graph_prepare(nodes: int, edges: int, dtype: torch.dtype, rule: int) -> None:
    edge_index = torch.randint(nodes, (2, edges), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = reference.graph_prepare(edge_index, nodes, rule)[:6]
    for order in (0, 3):
        for got, twin in zip(prepare(edge_index, nodes, rule, order), expected, strict=True):
            assert torch.equal(got, twin)


def test_graph_prepare_drops_edges_outside_the_graph() -> None:
    edge_index = torch.tensor([[0, 5, -1, 2**62], [1, 1, 0, 2]])
    expected = reference.graph_prepare(torch.tensor([[0], [1]]), 3, reference.GATV2_RULE)
    got = prepare(edge_index, 3, reference.GATV2_RULE)
    for i, used in enumerate((4, 4, 4, 4, 4, 4)):
        assert torch.equal(got[i][:used], expected[i][:used])


def raw(op: str, case: Case | ScanCase | LayerCase, dtype: torch.dtype, order: int) -> list[torch.Tensor | None]:
    """Every output of the forward and the backward, under one order of threads and blocks."""
    collected: list[torch.Tensor | None] = []
    environment = {"HIERMT_SIMT_ORDER": str(order)}
    if isinstance(case, Case):
        gat = op == "gatv2_conv"
        collected.append(conv_forward(case, dtype, gat, environment)[0])
        collected += [grad for _, grad, _ in conv_backward(case, dtype, gat, "xpe", environment)]
    elif isinstance(case, ScanCase):
        collected += scan_both(case, dtype, environment)
    else:
        collected += layer_both(case, dtype, environment)
    return collected


@pytest.mark.parametrize(
    ("op", "case"),
    [
        ("gatv2_conv", Case(hidden=16, nodes=20, edges=60)),
        ("gcn_conv", Case(hidden=5, nodes=20, edges=60)),
        ("gated_scan", ScanCase(hidden=16, nodes=11)),
        ("gated_scan", ScanCase(hidden=64, nodes=5, steps=2)),
        ("tgcn_layer", LayerCase(Case(hidden=8, nodes=20, edges=60))),
        ("tgcn_layer", LayerCase(Case(hidden=16, nodes=12, edges=40, copies=50))),
        ("tgcn_layer", LayerCase(Case(hidden=16, nodes=12, edges=40, copies=50), gat=False)),
        ("tgcn_layer", LayerCase(Case(hidden=16, nodes=12, edges=40, copies=50), edge_grad=False)),
        ("tgcn_layer", LayerCase(Case(hidden=8, nodes=20, edges=60, channels=9), edge_grad=False)),
        ("tgcn_layer", LayerCase(Case(hidden=32, nodes=12, edges=40, copies=50))),
        ("tgcn_layer", LayerCase(Case(hidden=64, nodes=20, edges=60, channels=9), edge_grad=False)),
        ("tgcn_layer", LayerCase(Case(hidden=64, nodes=20, edges=60, channels=9, steps=2), gat=False)),
    ],
    ids=lambda value: str(value),
)
def test_every_order_of_threads_gives_the_same_bits(op: str, case: Case | ScanCase | LayerCase) -> None:
    first = raw(op, case, torch.float32, 0)
    for order in (1, 2):
        for one, other in zip(first, raw(op, case, torch.float32, order), strict=True):
            assert one is None or torch.equal(one, other)


@pytest.mark.parametrize(
    "case",
    [
        Case(hidden=16, steps=0),
        Case(hidden=5, copies=0),
        Case(hidden=16, nodes=1, edges=0, copies=1, steps=1),
    ],
    ids=str,
)
def test_empty_problems(case: Case) -> None:
    for gat in (True, False):
        out, expected = conv_forward(case, torch.float32, gat)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
        assert_gradients(conv_backward(case, torch.float32, gat), torch.float32)


@pytest.mark.parametrize(
    "case",
    [ScanCase(hidden=16, steps=0, initial=True), ScanCase(hidden=5, steps=0), ScanCase(hidden=8, copies=0)],
    ids=str,
)
def test_empty_scans(case: ScanCase) -> None:
    scan_both(case, torch.float32)


@pytest.mark.parametrize("wanted", ["x", "p", "e", ""])
@pytest.mark.parametrize("gat", [True, False])
def test_only_the_gradients_asked_for(gat: bool, wanted: str) -> None:
    assert_gradients(conv_backward(Case(hidden=16), torch.float32, gat, wanted), torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("op", ["gatv2_conv", "gcn_conv", "tgcn_layer"])
def test_nan_and_infinity_go_where_the_twin_sends_them(op: str, value: float) -> None:
    case = Case(hidden=16, steps=6, activation=0)
    for where in ("x", "edge_weight"):

        def spoil(problem: Problem, where: str = where) -> None:
            if where == "x":
                problem.x[2, 1, 3] = value
                problem.x[4, 5] = value
            else:
                problem.edge_weight[3] = value

        if op == "tgcn_layer":
            out, expected = layer_forward(LayerCase(case), torch.float32, spoil)
        else:
            out, expected = conv_forward(case, torch.float32, op == "gatv2_conv", spoil=spoil)
        assert torch.equal(out.isnan(), expected.isnan())
        torch.testing.assert_close(out.double(), expected, rtol=2e-4, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize(("hidden", "copies", "steps"), [(257, 1, 1), (0, 1, 1), (16, 2**20, 2**11)])
def test_what_cannot_be_counted_is_refused_before_a_kernel_runs(hidden: int, copies: int, steps: int) -> None:
    problem = make(Case(hidden=4), torch.float32, gat=True)
    integers, inputs = conv_arguments(Case(hidden=hidden, copies=copies, steps=steps), problem, gat=True)
    with pytest.raises(ValueError, match="error 1"):
        run("conv_stack", torch.float32, integers, inputs, [((4,), torch.float32)])
