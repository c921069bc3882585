"""What a layer is made of: declared once, and what the modules keep of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hiermt
from hiermt import functional
from hiermt.testing import stock_graph

X, GRAPH = torch.linspace(-1, 1, 12 * 5 * 3).reshape(12, 5, 3), hiermt.Graph(*stock_graph(12, 40), 12)
VARIANTS: list[dict[str, Any]] = [
    {"use_gat": True, "conv_layers": 2, "edge_dim": 1, "conv_activation": "between"},
    {"use_gat": True, "conv_layers": 1, "edge_dim": None, "conv_activation": "after"},
    {"use_gat": False, "conv_layers": 3, "edge_dim": None, "conv_activation": "between"},
]


@pytest.mark.parametrize("arguments", VARIANTS)
def test_options_of_a_model_are_those_of_its_layers(arguments: dict[str, Any]) -> None:
    model = hiermt.TGCN_HierarchicalMT(3, 4, **arguments)
    assert arguments.items() <= model.config.items() and arguments.items() <= model.tgcn_backbone.config.items()
    for cell in model.tgcn_backbone.cells:
        assert cell.gcn.options.module_arguments == arguments


@pytest.mark.parametrize("make", [hiermt.TGCN_HierarchicalMT, lambda *a, **k: hiermt.TGCN(a[0], 2, 4, **k)])
@pytest.mark.parametrize(
    "wrong", [{"conv_layers": 0}, {"conv_layers": 1.0}, {"edge_dim": 2}, {"edge_dim": 0}, {"conv_activation": "before"}]
)
def test_every_module_refuses_what_is_no_layer(make: Callable[..., nn.Module], wrong: dict[str, Any]) -> None:
    for build in (make, hiermt.TGCNCell, hiermt.GAT):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            build(3, 4, **wrong)


def test_a_gcn_reads_no_edge_dim() -> None:
    assert hiermt.TGCN_HierarchicalMT(3, 4, use_gat=False, edge_dim=7).config["edge_dim"] is None


@pytest.mark.parametrize("change", [lambda m: m.append(hiermt.nn.conv.GATv2Conv(4, 4)), lambda m: m.__delitem__(1)])
def test_convolutions_added_or_removed(change: Callable[[Any], Any]) -> None:
    cell = hiermt.TGCNCell(3, 4)
    change(cell.gcn.convs)
    found = cell.run_sequence(X, GRAPH, cell.op_parameters(), sequence=True)
    g = X
    for i, conv in enumerate(cell.gcn.convs):
        g = conv(g, GRAPH)
        g = torch.nn.functional.leaky_relu(g) if i < len(cell.gcn.convs) - 1 else torch.sigmoid(g)
    torch.testing.assert_close(found, functional.gated_scan(X, g, None, cell.gates()))
    torch.testing.assert_close(torch.sigmoid(cell.gcn(X, GRAPH)), g)


@pytest.mark.parametrize("arguments", VARIANTS)
def test_copies_and_models_that_an_earlier_version_pickled(arguments: dict[str, Any]) -> None:
    model = hiermt.TGCN_HierarchicalMT(3, 4, **arguments)
    edges = GRAPH if arguments["edge_dim"] or not arguments["use_gat"] else hiermt.Graph(GRAPH.edge_index, None, 12)
    older = copy.deepcopy(model)
    for cell in older.tgcn_backbone.cells:
        options = cell.gcn.__dict__.pop("options")
        cell.gcn.__dict__.update(edge=options.edge, conv_activation=options.conv_activation)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), pickle.loads(pickle.dumps(older))):
        assert copied.tgcn_backbone.cells[0].gcn.options == model.tgcn_backbone.cells[0].gcn.options
        assert torch.equal(copied(X, edges)[0], model(X, edges)[0])
