"""``from_reference`` takes the cells of PyTorch Geometric Temporal and names the models of other families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt import testing
from hiermt.nn import temporal

oracle = pytest.importorskip("hiermt.testing.pyg_temporal", reason="the modules to take over need torch-geometric")
EDGES = testing.stock_graph(20, 60, isolated=2)


class TGCN2(oracle.TGCN):  # type: ignore[misc]
    """Takes a batch alone, as in the library."""

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        assert x.dim() == 3
        return super().forward(x, *arguments)  # type: ignore[no-any-return]


class A3TGCN2(oracle.A3TGCN):  # type: ignore[misc]
    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        assert x.dim() == 4
        return super().forward(x, *arguments)  # type: ignore[no-any-return]


def cases() -> dict[str, tuple[nn.Module, type, Tensor, Tensor]]:
    batch, h = torch.randn(2, 20, 3, 4), torch.randn(2, 20, 7)
    return {
        "TGCN": (oracle.TGCN(3, 7, True), temporal.TGCN, batch[0, ..., 0], h[0]),
        "TGCN2": (TGCN2(3, 7, False, True), temporal.TGCN2, batch[..., 0], h),
        "A3TGCN": (oracle.A3TGCN(3, 7, 4, False, False, False), temporal.A3TGCN, batch[0], h[0]),
        "A3TGCN2": (A3TGCN2(3, 7, 4), temporal.A3TGCN2, batch, h),
    }


@pytest.mark.parametrize("name", ["TGCN", "TGCN2", "A3TGCN", "A3TGCN2"])
def test_takes_the_module_with_its_parameters(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, kind, x, h = cases()[name]
    wanted = theirs(x, *EDGES, h)  # a cached graph, too
    ours: Any = hiermt.from_reference(theirs)
    assert type(ours) is kind
    assert "the same values and gradients" in capsys.readouterr().out
    assert {id(p) for p in ours.parameters()} == {id(p) for p in theirs.parameters()}
    testing.assert_close(ours(x, *EDGES, h), wanted)


@pytest.mark.parametrize("name", ["TGCN", "A3TGCN"])
def test_takes_its_state_and_file(name: str, tmp_path: Path) -> None:
    _, kind, x, h = cases()[name]
    theirs = (oracle.TGCN(3, 7) if name == "TGCN" else oracle.A3TGCN(3, 7, 4)).eval()
    state = {f"tgnn.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"epoch": 3, "model": state}, tmp_path / "checkpoint.pt")
    for source in (theirs.state_dict(), state, {"state_dict": state}, tmp_path / "checkpoint.pt"):
        ours: Any = hiermt.from_reference(source, verbose=False)
        assert type(ours) is kind
        testing.assert_close(ours(x, *EDGES, h), theirs(x, *EDGES, h))
    assert ours._parameters.keys() == theirs._parameters.keys()


class Swapped(oracle.TGCN):  # type: ignore[misc]
    """The update gate keeps the new state."""

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        h = arguments[-1] if len(arguments) == 3 and arguments[-1] is not None else 0.0
        return h + super().forward(x, *arguments)  # type: ignore[no-any-return]


def test_refuses_another_computation_under_the_same_names() -> None:
    with pytest.raises(ValueError, match=r"its results differ by .* take the weights alone"):
        hiermt.from_reference(Swapped(3, 7))
    mixed = oracle.TGCN(3, 7)
    mixed.conv_r.improved = True
    with pytest.raises(ValueError, match="its results differ by"):
        hiermt.from_reference(mixed)


def test_refuses_a_cell_inside_a_model_and_foreign_shapes() -> None:
    cell = oracle.TGCN(3, 7)
    model = nn.ModuleDict({"tgnn": cell, "linear": nn.Linear(7, 4)})
    with pytest.raises(ValueError, match=r"holds linear.weight, linear.bias beside .*from_reference\(model.tgnn\)"):
        hiermt.from_reference(model)
    state = dict(cell.state_dict())
    for change, message in (
        ({"linear_z.weight": torch.zeros(7, 10)}, r"linear_z.weight has shape \[7, 10\], expected \[7, 14\]"),
        ({"conv_z.lin.weight": torch.zeros(7)}, r"conv_z.lin.weight has shape \[7\]"),
        ({"extra": torch.zeros(1)}, "unknown extra"),
        ({"linear_h.bias": torch.zeros(7).double()}, "is torch.float32, linear_h.bias is torch.float64"),
        ({"linear_h.bias": 3}, "linear_h.bias is not one"),
    ):
        with pytest.raises(ValueError, match=message):
            hiermt.from_reference(state | change)
    with pytest.raises(ValueError, match="layout: a cell of PyTorch Geometric Temporal has none"):
        hiermt.from_reference(state, layout="NTF")


OTHERS = {
    "DCRNN": "recurrent.conv_x_z.weight",
    "GConvGRU": "recurrent.conv_x_z.lins.0.weight",
    "GConvLSTM": "conv_x_i.lins.0.weight",
    "GCLSTM": "conv_i.lins.0.weight",
    "AGCRN": "_gate.W",
    "EvolveGCN": "recurrent_layer.weight_ih_l0",
    "T-GCN of the paper's author": "tgcn_cell.graph_conv1.weights",
    "T-GCN of LibCity": "tgcn_model.weigts_0",
}


@pytest.mark.parametrize("family", OTHERS)
def test_names_the_families_whose_recurrence_reads_the_graph(family: str) -> None:
    for source in ({OTHERS[family]: torch.zeros(2, 2)}, {"state_dict": {OTHERS[family]: torch.zeros(2, 2)}}):
        with pytest.raises(ValueError, match=f"it is a {family}, whose recurrence runs through its graph convolution"):
            hiermt.from_reference(source)


def test_names_them_by_their_class() -> None:
    module = nn.ModuleList([type("GConvGRU", (nn.Module,), {})()])
    with pytest.raises(ValueError, match="ModuleList: cannot be mapped to a T-GCN: it is a GConvGRU"):
        hiermt.from_reference(module)
