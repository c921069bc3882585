"""The CUDA kernels, compiled for the host: values and gradients of the twins, and what a GPU would punish."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from simt_cases import (
    DTYPES,
    Case,
    Problem,
    ScanCase,
    assert_gradients,
    conv_arguments,
    conv_backward,
    conv_forward,
    make,
    scan_both,
)
from simt_harness import SimtFault, compiler, run
from simt_layers import Layer, LayerCase, layer_arguments, layer_both, layer_forward, make_layer

from hiermt import reference
from hiermt.testing import tolerance

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


def with_dtypes(cases: list, first: int = 5) -> pytest.MarkDecorator:
    """Every case in float32; the `first` ones, which meet every specialisation, in the other dtypes too."""
    pairs = [(case, torch.float32) for case in cases]
    pairs += [(case, dtype) for dtype in DTYPES[1:] for case in cases[:first]]
    names = [f"{case}-{str(dtype).removeprefix('torch.')}" for case, dtype in pairs]
    return pytest.mark.parametrize(("case", "dtype"), pairs, ids=names)


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
    found = tolerance(dtype)
    torch.testing.assert_close(out.double(), expected, rtol=found.rtol, atol=found.atol)


@with_dtypes(GATV2_CASES)
def test_gatv2_conv_backward(case: Case, dtype: torch.dtype) -> None:
    assert_gradients(conv_backward(case, dtype, gat=True), dtype)


GCN_CASES = [case for case in GATV2_CASES if case.weighted]


@with_dtypes(GCN_CASES)
def test_gcn_conv(case: Case, dtype: torch.dtype) -> None:
    out, expected = conv_forward(case, dtype, gat=False)
    found = tolerance(dtype)
    torch.testing.assert_close(out.double(), expected, rtol=found.rtol, atol=found.atol)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("hidden", "nodes", "steps", "layout"),
    [
        (16, 7, 5, "dense"),
        (16, 9, 4, "windows"),
        (8, 11, 6, "days first"),
        (32, 3, 1, "days first"),
        (64, 5, 3, "windows"),
        (5, 4, 6, "windows"),
        (100, 3, 2, "days first"),
        (16, 2, 0, "dense"),
        (16, 0, 3, "dense"),
    ],
)
def test_gated_scan_projected(hidden: int, nodes: int, steps: int, layout: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(hidden)
    width = 3 * hidden
    if layout == "windows":  # node n begins a day after node n - 1, and shares all others with it
        z = (
            torch.randn(nodes + steps, width, generator=generator)
            .to(dtype)
            .as_strided((nodes, steps, width), (width, width, 1))
        )
    elif layout == "days first":
        z = torch.randn(steps, nodes, width, generator=generator).to(dtype).transpose(0, 1)
    else:
        z = torch.randn(nodes, steps, width, generator=generator).to(dtype)
    channels = 3
    shapes = [(hidden, channels + 2 * hidden), (hidden,)] * 3
    gates = [(torch.randn(*shape, generator=generator) * hidden**-0.5).to(dtype) for shape in shapes]
    expected = reference.gated_scan_projected(z.double(), [gate.double() for gate in gates], True)
    integers = [nodes, steps, hidden, channels, *z.stride()[:2]]
    shape = (nodes, steps, hidden)
    h, last = run("gated_scan_projected", dtype, integers, [z, *gates], [(shape, dtype), ((nodes, hidden), dtype)])
    found = tolerance(dtype)
    torch.testing.assert_close(h.double(), expected, rtol=found.rtol, atol=found.atol)
    assert torch.equal(last, h[:, -1] if steps else torch.zeros(nodes, hidden, dtype=dtype))


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


LAYER_CASES = [
    LayerCase(Case(hidden=16, copies=2)),
    LayerCase(Case(hidden=16), sequence=False),
    LayerCase(Case(hidden=8, weighted=False), conv_layers=1, between=False),
    LayerCase(Case(hidden=16), gat=False),
    LayerCase(Case(hidden=5, layout="strided"), conv_layers=3),
    LayerCase(Case(hidden=64, steps=2, nodes=5, edges=8)),
    LayerCase(Case(hidden=64, steps=3, channels=64, copies=50, nodes=3, edges=4), gat=False, between=False),
    LayerCase(Case(hidden=32, steps=2), gat=False, conv_layers=1, between=False, sequence=False),
    # Enough copies that a block takes several steps, the last block of a copy fewer.
    LayerCase(Case(hidden=8, nodes=3, edges=4, copies=60, steps=5), conv_layers=1),
    LayerCase(Case(hidden=16, nodes=3, edges=4, copies=140, steps=3, channels=3)),
    LayerCase(Case(hidden=16, nodes=40, edges=90, copies=3, steps=6, channels=20), conv_layers=3),
    LayerCase(Case(hidden=16, nodes=40, edges=90, copies=3, steps=6, channels=20), gat=False, conv_layers=3),
    LayerCase(Case(hidden=8, nodes=3, edges=4, copies=60, steps=5, layout="strided"), gat=False, conv_layers=1),
    LayerCase(Case(hidden=32, nodes=12, edges=40, steps=3), gat=False, between=False),
    LayerCase(Case(hidden=64, nodes=61, edges=300, steps=3, channels=20), conv_layers=3, between=False),
    LayerCase(Case(hidden=64, nodes=9, edges=30, steps=5, copies=40, channels=1, layout="strided"), conv_layers=1),
    LayerCase(Case(hidden=64, nodes=61, edges=300, steps=2, channels=33), gat=False),
    # More channels of x than of the item.
    LayerCase(Case(hidden=64, nodes=3, edges=4, steps=2, channels=65)),
    # More convolutions than one launch takes.
    LayerCase(Case(hidden=16, steps=2), gat=False, conv_layers=4),
]
# Without a gradient of the edge weights the stack goes back by another kernel.
FUSED_CASES = [
    LayerCase(Case(hidden=16, copies=2), edge_grad=False),
    LayerCase(Case(hidden=8), sequence=False, edge_grad=False),
    LayerCase(Case(hidden=16, channels=3), conv_layers=1, edge_grad=False),
    # Four lanes an item, then eight.
    LayerCase(Case(hidden=32, nodes=7, edges=30, steps=2, channels=35), edge_grad=False),
    LayerCase(Case(hidden=64, nodes=5, edges=20, steps=2), edge_grad=False),
    LayerCase(Case(hidden=16, layout="strided"), between=False, edge_grad=False),
    LayerCase(Case(hidden=16, nodes=40, edges=90, copies=3, steps=6, channels=20), conv_layers=3, edge_grad=False),
    LayerCase(Case(hidden=8, nodes=3, edges=4, copies=140, steps=3, channels=17), edge_grad=False),
    LayerCase(Case(hidden=32, nodes=7, edges=30, steps=6, copies=50, channels=9), conv_layers=3),
    # More tasks than blocks: a block adds to its partial sums.
    LayerCase(Case(hidden=16, nodes=3, edges=4, copies=300, steps=2, channels=2), edge_grad=False),
    LayerCase(Case(hidden=16, nodes=1, edges=0), edge_grad=False),
    LayerCase(Case(hidden=32, nodes=41, edges=200, copies=50, steps=5, channels=35), edge_grad=False),
    LayerCase(Case(hidden=32, nodes=1, edges=0, channels=3), conv_layers=1, between=False, edge_grad=False),
    LayerCase(Case(hidden=64, nodes=21, edges=100, steps=3, channels=64), conv_layers=3, edge_grad=False),
    LayerCase(Case(hidden=64, nodes=3, edges=4, copies=140, steps=2, channels=2), between=False, edge_grad=False),
]


@with_dtypes(LAYER_CASES, 7)
def test_tgcn_layer(case: LayerCase, dtype: torch.dtype) -> None:
    layer_both(case, dtype)


@with_dtypes(FUSED_CASES, 5)
def test_tgcn_layer_with_constant_edges(case: LayerCase, dtype: torch.dtype) -> None:
    layer_both(case, dtype)


@pytest.mark.parametrize(
    ("case", "dtype", "launches"),
    [
        (LayerCase(Case(hidden=16)), torch.float32, 2),
        (LayerCase(Case(hidden=32), conv_layers=3), torch.bfloat16, 2),
        (LayerCase(Case(hidden=16), gat=False), torch.float32, 2),
        (LayerCase(Case(hidden=8), gat=False, conv_layers=1), torch.float16, 2),
        (LayerCase(Case(hidden=64, steps=2)), torch.float32, 2),
        (LayerCase(Case(hidden=64, steps=2, channels=64), gat=False), torch.bfloat16, 2),
        (LayerCase(Case(hidden=64, steps=2, channels=65)), torch.float32, 6),
        # The largest template of 64 channels, and one node more.
        (LayerCase(Case(hidden=64, steps=1, nodes=122)), torch.float32, 2),
        (LayerCase(Case(hidden=64, steps=1, nodes=123)), torch.float32, 6),
        (LayerCase(Case(hidden=40, steps=2)), torch.float32, 6),
        (LayerCase(Case(hidden=5), gat=False), torch.float32, 6),
        (LayerCase(Case(hidden=16)), torch.float64, 6),
    ],
    ids=str,
)
def test_launches_of_a_layer(case: LayerCase, dtype: torch.dtype, launches: int, tmp_path: Path) -> None:
    layer, path = make_layer(case, dtype), tmp_path / "launches"
    shape = (case.problem.copies * case.problem.nodes, case.problem.steps, case.problem.hidden)
    environment = {"HIERMT_SIMT_LAUNCHES": str(path)}
    run("tgcn_layer", dtype, *layer_arguments(case, layer), [(shape, dtype), None, None, None], environment)
    assert int(path.read_text()) == launches


@pytest.mark.parametrize(
    ("case", "shared_bytes", "launches"),
    [
        (LayerCase(Case(hidden=16), edge_grad=False), 232448, 9),
        (LayerCase(Case(hidden=64, steps=2, nodes=100, channels=64), edge_grad=False), 232448, 9),
        (LayerCase(Case(hidden=64, steps=2, nodes=100, channels=64), edge_grad=False), 166912, 25),
        (LayerCase(Case(hidden=16)), 232448, 10),
        (LayerCase(Case(hidden=40)), 232448, 28),
        # What a block takes at 32 channels, and one byte less.
        (LayerCase(Case(hidden=32), edge_grad=False), 66784, 9),
        (LayerCase(Case(hidden=32), edge_grad=False), 66783, 25),
        (LayerCase(Case(hidden=16), gat=False, edge_grad=False), 232448, 23),
    ],
    ids=str,
)
def test_launches_of_a_layer_backward(case: LayerCase, shared_bytes: int, launches: int, tmp_path: Path) -> None:
    path = tmp_path / "launches"
    limit = {"HIERMT_SIMT_SHARED_BYTES": str(shared_bytes)}
    layer_both(case, torch.float32, {"HIERMT_SIMT_LAUNCHES": str(path), **limit})
    assert int(path.read_text()) == launches


@pytest.mark.parametrize(("hidden", "launches"), [(32, 9), (64, 25)])
def test_launches_of_a_layer_backward_on_tensor_cores(hidden: int, launches: int, tmp_path: Path) -> None:
    path = tmp_path / "launches"
    case = LayerCase(Case(hidden=hidden, steps=2), edge_grad=False)
    layer_both(case, torch.bfloat16, {"HIERMT_SIMT_LAUNCHES": str(path)})
    assert int(path.read_text()) == launches


@pytest.mark.parametrize(
    "case",
    [
        LayerCase(Case(hidden=64, nodes=5, edges=8, steps=3)),
        LayerCase(Case(hidden=40, channels=21, steps=3), gat=False),
        LayerCase(Case(hidden=16, channels=13), gat=False, edge_grad=False),
    ],
    ids=str,
)
def test_tensor_cores(case: LayerCase) -> None:
    """TF32 moves the numbers, as far as 10 bits of mantissa let one expect; bfloat16 and half always take this way."""
    exact = layer_both(case, torch.float32)
    rounded = layer_both(case, torch.float32, {"HIERMT_SIMT_TF32": "1"}, torch.bfloat16)
    pairs = [(a, b) for a, b in zip(exact, rounded, strict=True) if a is not None]
    assert any(not torch.equal(a, b) for a, b in pairs)
    for a, b in pairs:
        assert float((a - b).norm()) <= 4e-3 * float(a.norm())


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


def test_an_entry_at_minus_infinity_has_no_part_in_a_stack() -> None:
    def spoil(layer: Layer) -> None:
        for conv in layer.conv:
            att, edge = conv[4], conv[6]
            assert att is not None and edge is not None
            att.abs_()
            edge.abs_()
        assert layer.edge_weight is not None
        layer.edge_weight[3] = -float("inf")

    out, expected = layer_forward(LayerCase(Case(hidden=16, steps=6)), torch.float32, spoil)
    assert expected.isfinite().all()
    torch.testing.assert_close(out.double(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("hidden", "copies", "steps"), [(257, 1, 1), (0, 1, 1), (16, 2**20, 2**11)])
def test_what_cannot_be_counted_is_refused_before_a_kernel_runs(hidden: int, copies: int, steps: int) -> None:
    problem = make(Case(hidden=4), torch.float32, gat=True)
    integers, inputs = conv_arguments(Case(hidden=hidden, copies=copies, steps=steps), problem, gat=True)
    with pytest.raises(ValueError, match="error 1"):
        run("gatv2_conv", torch.float32, integers, inputs, [((4,), torch.float32)])
