"""What users of PyG expect of every module: reset_parameters, dropout, and clear words on other arguments."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import hiermt
from hiermt import testing

EDGES = testing.stock_graph(20, 60, isolated=2)
MODULES: dict[str, Callable[..., Any]] = {
    "GAT": lambda: hiermt.GAT(5, [7, 6]),
    "GAT without bias": lambda: hiermt.GAT(5, 7, bias=False),
    "GCN": lambda: hiermt.GCN(5, 7),
    "TGCNCell": lambda: hiermt.TGCNCell(5, 7),
    "TGCN": lambda **options: hiermt.TGCN(5, 3, 7, **options),
    "A3TGCN": lambda **options: hiermt.A3TGCN(5, 3, 7, use_gat=False, **options),
    "TGCN_HierarchicalMT": lambda **options: hiermt.TGCN_HierarchicalMT(5, 7, **options),
    "MultiTaskTGCN": lambda **options: hiermt.MultiTaskTGCN(5, 7, heads={"a": 3, "b": 1}, **options),
}
MODELS = list(MODULES)[4:]


@pytest.mark.parametrize("name", MODULES)
def test_reset_parameters_draws_what_the_constructor_draws(name: str) -> None:
    torch.manual_seed(5)
    module = MODULES[name]()
    fresh = {key: value.clone() for key, value in module.state_dict().items()}
    module.reset_parameters()
    assert not any(torch.equal(value, fresh[key]) for key, value in module.state_dict().items() if "weight" in key)
    torch.manual_seed(5)
    module.reset_parameters()
    assert all(torch.equal(value, fresh[key]) for key, value in module.state_dict().items())


def test_reset_parameters_names_a_part_that_cannot() -> None:
    model = hiermt.TGCN(5, 3, 7)
    model.out[0] = nn.Identity()
    before = model.cells[0].lin_u.weight.clone()  # type: ignore[union-attr,operator]
    with pytest.raises(TypeError, match="reset_parameters: a Identity has no reset_parameters"):
        model.reset_parameters()
    assert torch.equal(before, model.cells[0].lin_u.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODULES)
def test_refuses_a_graph_object_and_a_sparse_matrix(name: str) -> None:
    module = MODULES[name]()
    x = torch.randn(20, 5) if name == "TGCNCell" else torch.randn(20, 4, 5)
    data = SimpleNamespace(x=x, edge_index=EDGES[0], edge_weight=EDGES[1])
    module(data.x, data.edge_index, data.edge_weight.unsqueeze(1))
    with pytest.raises(TypeError, match=r"got SimpleNamespace; pass its tensors: model\(data.x, data.edge_index"):
        module(data)
    with pytest.raises(TypeError, match=r"edge_index: .* got None; call the model with \(x, edge_index"):
        module(x)
    sparse = torch.sparse_coo_tensor(EDGES[0], EDGES[1], (20, 20))
    for matrix in (sparse, sparse.to_sparse_csr(), type("SparseTensor", (), {})()):
        with pytest.raises(TypeError, match=r"edge_index: .* sparse adjacency matrix .*to_edge_index\(adj_t.t\(\)\)"):
            module(x, matrix)


def test_the_way_out_of_a_sparse_matrix_is_right() -> None:
    utils = pytest.importorskip("torch_geometric.utils")
    edge_index, edge_weight = EDGES[0][:, ::3], EDGES[1][::3]
    adj_t = torch.sparse_coo_tensor(edge_index.flip(0), edge_weight, (20, 20)).coalesce()
    model, x = hiermt.GCN(5, 7), torch.randn(20, 5)
    testing.assert_close(model(x, *utils.to_edge_index(adj_t.t())), model(x, edge_index, edge_weight))


def test_a_sparse_edge_weight_is_refused() -> None:
    with pytest.raises(TypeError, match="edge_weight: expected a dense tensor"):
        hiermt.GCN(5, 7)(torch.randn(20, 5), EDGES[0], EDGES[1].to_sparse())


@pytest.mark.parametrize("name", MODELS)
def test_dropout_acts_in_training_alone(name: str, backend: str) -> None:
    model = MODULES[name](dropout=0.5, backend=backend)
    plain = MODULES[name](backend=backend)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(20, 4, 5)

    def first(module: Any) -> torch.Tensor:
        found = module(x, *EDGES)
        found = found if isinstance(found, tuple) else tuple(found.values()) if isinstance(found, dict) else (found,)
        return found[0]  # type: ignore[no-any-return]

    assert torch.equal(first(model.eval()), first(plain.eval()))
    assert not torch.equal(first(model.train()), first(model))
    assert model.config["dropout"] == 0.5
    assert "dropout" not in plain.config
    for wrong, error in ((1.5, ValueError), (True, TypeError), (float("nan"), ValueError)):
        with pytest.raises(error, match="dropout: expected"):
            MODULES[name](dropout=wrong)


def test_dropout_keeps_the_scale_of_the_states() -> None:
    """The mean over many draws is the value without dropout: a linear reads the states of one cell."""
    model = hiermt.TGCN(5, 3, 32, 1, dropout=0.5, use_gat=False)
    x = torch.randn(20, 4, 5)
    with torch.no_grad():
        draws = torch.stack([model(x, *EDGES) for _ in range(600)])
        wanted = model.eval()(x, *EDGES)
    error = (draws.mean(0) - wanted).abs() / (draws.std(0) / 600**0.5)
    assert float(error.max()) < 5
