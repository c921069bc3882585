"""A whole layer on the CUDA kernels, compiled for the host: every size with a way of its own, and its launches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simt.cases import Case, with_dtypes
from simt.harness import compiler, run
from simt.layers import Layer, LayerCase, layer_arguments, layer_both, layer_forward, make_layer

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++ on x86-64")


LAYER_CASES = [
    LayerCase(Case(hidden=16, copies=2)),
    LayerCase(Case(hidden=16), sequence=False),
    LayerCase(Case(hidden=8, weighted=False), conv_layers=1, between=False),
    LayerCase(Case(hidden=16), gat=False),
    LayerCase(Case(hidden=5, layout="strided"), conv_layers=3),
    LayerCase(Case(hidden=64, steps=2, nodes=5, edges=9)),
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
    LayerCase(Case(hidden=16, copies=2), initial=True),
    LayerCase(Case(hidden=5, copies=2), gat=False, initial=True, sequence=False),
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
        (LayerCase(Case(hidden=16), edge_grad=False), 232448, 6),
        (LayerCase(Case(hidden=64, steps=2, nodes=100, channels=64), edge_grad=False), 232448, 6),
        (LayerCase(Case(hidden=64, steps=2, nodes=100, channels=64), edge_grad=False), 166912, 22),
        (LayerCase(Case(hidden=16)), 232448, 7),
        (LayerCase(Case(hidden=40)), 232448, 25),
        # What a block takes at 32 channels, and one byte less.
        (LayerCase(Case(hidden=32), edge_grad=False), 66784, 6),
        (LayerCase(Case(hidden=32), edge_grad=False), 66783, 22),
        (LayerCase(Case(hidden=16), gat=False, edge_grad=False), 232448, 20),
    ],
    ids=str,
)
def test_launches_of_a_layer_backward(case: LayerCase, shared_bytes: int, launches: int, tmp_path: Path) -> None:
    path = tmp_path / "launches"
    limit = {"HIERMT_SIMT_SHARED_BYTES": str(shared_bytes)}
    layer_both(case, torch.float32, {"HIERMT_SIMT_LAUNCHES": str(path), **limit})
    assert int(path.read_text()) == launches


@pytest.mark.parametrize(("hidden", "launches"), [(32, 6), (64, 22)])
def test_launches_of_a_layer_backward_on_tensor_cores(hidden: int, launches: int, tmp_path: Path) -> None:
    path = tmp_path / "launches"
    case = LayerCase(Case(hidden=hidden, steps=2, edges=31), edge_grad=False)
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
