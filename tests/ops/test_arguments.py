"""Numbers of NumPy are numbers everywhere; a bool is none, and a Tensor is not read out in silence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt import functional, testing
from hiermt import windows as gather

INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64]
NOT_INTEGERS = [True, False, np.True_, 4.0, 2.5, np.float64(4), "4", torch.tensor(4), [4]]
SIZES: dict[str, dict[str, Any]] = {
    "TGCN_HierarchicalMT": {"in_channels": 3, "hidden_size": 4, "layers_nb": 2, "conv_layers": 2, "edge_dim": 1},
    "TGCN": {"in_channels": 3, "out_channels": 2, "hidden_size": 4, "layers_nb": 2, "conv_layers": 1, "edge_dim": 1},
    "TGCNCell": {"in_channels": 3, "hidden_size": 4, "conv_layers": 2, "edge_dim": 1},
    "GAT": {"in_channels": 3, "hidden_size": 4, "conv_layers": 2, "edge_dim": 1},
    "GCN": {"in_channels": 3, "hidden_size": 4, "conv_layers": 2},
}
CASES = [(kind, name) for kind, sizes in SIZES.items() for name in sizes]


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("use_gat", [True, False])
def test_integers_of_numpy_build_the_same_module(kind: str, use_gat: bool, integer: Any) -> None:
    options = {} if kind in ("GAT", "GCN") else {"use_gat": use_gat}
    module = getattr(hiermt, kind)
    built = module(**{name: integer(size) for name, size in SIZES[kind].items()}, **options)
    expected = module(**SIZES[kind], **options)
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (built, expected)]
    assert shapes[0] == shapes[1]
    if hasattr(built, "config"):
        assert json.dumps(built.config) == json.dumps(expected.config)
    if kind != "TGCNCell":
        assert type(getattr(built, "hidden_size", 4)) is int


@pytest.mark.hostile("scalars")
@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_is_not_an_integer_builds_nothing(kind: str, name: str, value: Any) -> None:
    if (kind, name, value) in (("GAT", "hidden_size", [4]), ("GCN", "hidden_size", [4])):
        pytest.skip("a list holds the size of each convolution")
    with pytest.raises(TypeError, match=f"{name}: expected an integer"):
        getattr(hiermt, kind)(**{**SIZES[kind], name: value})


@pytest.mark.parametrize("value", [0, -1, np.int64(0)])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_sizes_out_of_range_build_nothing(kind: str, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        getattr(hiermt, kind)(**{**SIZES[kind], name: value})


def test_sizes_of_numpy_are_saved(tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    model = hiermt.TGCN_HierarchicalMT(np.int64(3), np.int32(4), np.int16(1))
    model.save_pretrained(tmp_path)
    assert hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path).config == model.config


@pytest.mark.parametrize("integer", INTEGERS)
def test_graph_and_windows(backend: str, integer: Any) -> None:
    edge_index, edge_weight = testing.stock_graph(12, 40)
    graph = hiermt.Graph(edge_index, edge_weight, integer(12), backend=backend)
    assert type(graph.num_nodes) is int and graph.num_nodes == 12
    series, starts = torch.randn(12, 9, 3), torch.tensor([0, 2])
    wanted = gather.gather_windows(series, starts, 4, backend=backend)
    assert torch.equal(gather.gather_windows(series, starts, integer(4), backend=backend), wanted)
    windows = hiermt.Windows(series, starts, integer(4))
    assert torch.equal(windows.gather(backend=backend), wanted)
    assert windows.days().tolist() == [0, 1, 2, 3, 4, 5]
    model = hiermt.TGCN_HierarchicalMT(3, 4, backend=backend)
    plain = model(hiermt.Windows(series, starts, 4), graph)
    for one, other in zip(model(windows, graph), plain, strict=True):
        assert torch.equal(one, other)
    cell = model.tgcn_backbone.cells[0]
    x, convs = series[:, :4], cell.gcn.op_parameters()
    found = functional.tgcn_layer(x, graph, convs, cell.gates(), conv_layers=integer(2), backend=backend)
    assert torch.equal(found, functional.tgcn_layer(x, graph, convs, cell.gates(), backend=backend))
    g = torch.rand(12, 9, 4)
    scans = [
        functional.gated_scan_windows(series, g, starts, steps, cell.gates(), backend=backend)
        for steps in (integer(4), 4)
    ]
    assert torch.equal(*scans)


@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
def test_graph_and_windows_refuse_the_rest(value: Any) -> None:
    edge_index, edge_weight = testing.stock_graph(12, 40)
    with pytest.raises(TypeError, match="num_nodes: expected an integer"):
        hiermt.Graph(edge_index, edge_weight, value)
    series, starts = torch.randn(12, 9, 3), torch.tensor([0, 2])
    graph = hiermt.Graph(edge_index, edge_weight, 12)
    model = hiermt.TGCN_HierarchicalMT(3, 4)
    windows = hiermt.Windows(series, starts, value)
    for run in (lambda: gather.gather_windows(series, starts, value), windows.days, lambda: model(windows, graph)):
        with pytest.raises(TypeError, match="steps: expected an integer"):
            run()
    cell = model.tgcn_backbone.cells[0]
    with pytest.raises(TypeError, match="conv_layers: expected an integer"):
        functional.tgcn_layer(series, graph, cell.gcn.op_parameters(), cell.gates(), conv_layers=value)


def decisions(threshold: Any) -> list[Any]:
    """Every function that takes a threshold, as calls without arguments."""
    model, h = hiermt.TGCN_HierarchicalMT(3, 4), torch.randn(12, 4)
    edge_index, edge_weight = testing.stock_graph(12, 40)
    graph = hiermt.Graph(edge_index, edge_weight, 12)
    x, series = torch.randn(12, 5, 3), torch.randn(12, 9, 3)

    class Batch:
        pass

    batch = Batch()
    batch.x, batch.graph = x, graph  # type: ignore[attr-defined]
    return [
        lambda: functional.decision(h, model._head_params(), threshold)[3],
        lambda: functional.decision_from_logits(h[:, :2], h[:, 2:], threshold)[1],
        lambda: model.decide(x, graph, threshold=threshold)[0],
        lambda: hiermt.inference_hierarchical(model, batch, confidence_threshold=threshold)[0],
        lambda: hiermt.predict_rolling(model, series, graph, 5, threshold=threshold).predictions,
        lambda: hiermt.LivePredictor(model, graph, 5, threshold=threshold).extend(series).predictions,
    ]


@pytest.mark.hostile("scalars")
@pytest.mark.parametrize(
    "value",
    [torch.tensor(0.4), torch.tensor(0.4, requires_grad=True), nn.Parameter(torch.tensor(0.4)), torch.tensor([0.4])],
    ids=["tensor", "requires grad", "parameter", "vector"],
)
def test_a_threshold_is_not_a_tensor(value: Tensor) -> None:
    for run in decisions(value):
        with pytest.raises(TypeError, match=r"threshold: expected a number, got a Tensor"):
            run()


@pytest.mark.parametrize("value", [True, False, np.True_, "0.5", None, [0.5], 1j], ids=repr)
def test_a_threshold_is_a_number(value: Any) -> None:
    for run in decisions(value):
        with pytest.raises(TypeError, match="threshold: expected a number"):
            run()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5, np.float32("nan"), 2])
def test_a_threshold_is_a_probability(value: Any) -> None:
    for run in decisions(value):
        with pytest.raises(ValueError, match=r"threshold: expected a number in \[0, 1\]"):
            run()


@pytest.mark.hostile("scalars")
@pytest.mark.parametrize("value", [0, 1, np.float64(0.25), np.float32(0.25), np.float16(0.25), np.int64(1)], ids=repr)
def test_thresholds_of_numpy_are_accepted(value: Any) -> None:
    torch.manual_seed(0)
    found = decisions(value)
    torch.manual_seed(0)
    for run, plain in zip(found, decisions(float(value)), strict=True):
        assert torch.equal(run(), plain())
