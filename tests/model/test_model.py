"""The whole model against PyG's own convolutions stepped through time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import testing
from support.graphs import small_graphs
from support.properties import HealthCheck, given, settings

pyg = pytest.importorskip("hiermt.testing.pyg", reason="the outside oracle needs torch-geometric")

VARIANTS: dict[str, dict[str, Any]] = {
    "gatv2": {},
    "gatv2-after": {"conv_activation": "after"},
    "single": {"conv_layers": 1, "edge_dim": None, "conv_activation": "after"},
    "single-between": {"conv_layers": 1},
    "gcn": {"use_gat": False},
    "gcn-three-after": {"use_gat": False, "conv_layers": 3, "conv_activation": "after"},
}
PARAMETERS = {"gatv2": 7172, "single": 5956, "gcn": 5940}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]


def graph_for(variant: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    edge_index, edge_weight = testing.stock_graph(20, 60, isolated=2)
    return edge_index, None if variant.get("edge_dim", 1) is None else edge_weight.to(dtype)


def gradients(model: torch.nn.Module, x: Tensor, *edges: Any) -> dict[str, Tensor]:
    """Values and gradients of a loss that touches every output, by name."""
    x = x.clone().requires_grad_()
    signal, direction = model(x, *edges)
    loss = (signal * signal).sum() + (direction * torch.tensor([1.0, -2.0], dtype=x.dtype)).sum()
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, [x, *named.values()], allow_unused=True)
    result = {"signal": signal.detach(), "direction": direction.detach(), "x": found[0]}
    zeros = [torch.zeros_like(p) if g is None else g for g, p in zip(found[1:], named.values(), strict=True)]
    return result | dict(zip(named, zeros, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_pyg_in_values_and_all_gradients(variant: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 7, 2, **variant, backend=backend).to(dtype)
    x = torch.randn(20, 6, 5, dtype=dtype)
    edges = graph_for(variant, dtype)
    ours, theirs = gradients(model, x, *edges), gradients(pyg.like(model), x, *edges)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        testing.assert_close(value, theirs[name], gradient=name not in ("signal", "direction"), message=name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_of_the_published_variants(name: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(13, 16, 2, **VARIANTS[name])
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_state_dict_loads_strictly_both_ways(variant: dict[str, Any]) -> None:
    ours = hiermt.TGCN_HierarchicalMT(5, 7, 2, **variant)
    theirs = pyg.HierarchicalMT(5, 7, 2, **variant)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.hostile("loops")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=small_graphs())
@pytest.mark.parametrize("use_gat", [True, False])
def test_equals_pyg_on_any_small_graph(graph: tuple[int, Tensor, Tensor], use_gat: bool, backend: str) -> None:
    num_nodes, edge_index, edge_weight = graph
    model = hiermt.TGCN_HierarchicalMT(3, 4, 2, use_gat, backend=backend).double()
    x = torch.randn(num_nodes, 4, 3, dtype=torch.float64)
    if num_nodes == 0:  # PyG itself fails on an empty graph
        signal, direction = model(x, edge_index, edge_weight)
        assert signal.shape == direction.shape == (0, 2)
        return
    ours = gradients(model, x, edge_index, edge_weight)
    theirs = gradients(pyg.like(model), x, edge_index, edge_weight)
    for name, value in ours.items():
        testing.assert_close(value, theirs[name], gradient=True, message=name)


def test_edge_weight_gradient_equals_pyg(backend: str) -> None:
    edge_index, edge_weight = testing.stock_graph(20, 60, isolated=2)
    edge_index = torch.cat([edge_index, torch.tensor([[3, 4], [3, 4]]), edge_index[:, :2]], dim=1)  # loops, duplicates
    edge_weight = torch.cat([edge_weight, torch.tensor([0.5, 0.25, 0.125, 1.0])]).double()
    x = torch.randn(20, 4, 3, dtype=torch.float64)
    for use_gat in (True, False):
        model = hiermt.TGCN_HierarchicalMT(3, 4, 1, use_gat, backend=backend).double()
        found = []
        for candidate in (model, pyg.like(model)):
            weight = edge_weight.clone().requires_grad_()
            signal, direction = candidate(x, edge_index, weight)
            found.append(torch.autograd.grad((signal - direction).square().sum(), weight)[0])
        testing.assert_close(found[0], found[1], gradient=True, message=f"use_gat={use_gat}")


def test_batch_of_copies_equals_shared_graph_and_single_windows(variant: dict[str, Any], backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, 2, **variant, backend=backend)
    edge_index, edge_weight = graph_for(variant, torch.float32)
    x = torch.randn(6, 20, 7, 5)
    as_batch = model(x.reshape(120, 7, 5), *testing.batched(edge_index, edge_weight, 20, 6))
    shared = model(x, edge_index, edge_weight)
    one_by_one = [model(window, edge_index, edge_weight) for window in x]
    for head in range(2):
        assert shared[head].shape == (6, 20, 2)
        testing.assert_close(as_batch[head].view(6, 20, 2), shared[head])
        testing.assert_close(torch.stack([window[head] for window in one_by_one]), shared[head])


def test_batch_of_different_graphs_equals_the_graphs_one_by_one(backend: str) -> None:
    from torch_geometric.data import Batch, Data

    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    data = []
    for seed, nodes in enumerate((12, 20, 7)):
        edge_index, edge_weight = testing.stock_graph(nodes, 2 * nodes, isolated=1, seed=seed)
        data.append(Data(x=torch.randn(nodes, 6, 5), edge_index=edge_index, edge_weight=edge_weight))
    batch = Batch.from_data_list(data)
    together = model(batch.x, batch.edge_index, batch.edge_weight)
    apart = [model(d.x, d.edge_index, d.edge_weight) for d in data]
    for head in range(2):
        testing.assert_close(together[head], torch.cat([logits[head] for logits in apart]))


def test_layout_nft_reads_the_same_numbers(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    other = hiermt.TGCN_HierarchicalMT(5, 8, layout="NFT", backend=backend)
    other.load_state_dict(model.state_dict())
    edges = testing.stock_graph(20, 60)
    x = torch.randn(20, 6, 5)
    for ours, theirs in zip(model(x, *edges), other(x.transpose(1, 2).contiguous(), *edges), strict=True):
        testing.assert_close(ours, theirs)


@pytest.mark.hostile("edge-form")
def test_int32_edges_and_no_weights(backend: str) -> None:
    edge_index, edge_weight = testing.stock_graph(20, 60)
    x = torch.randn(20, 6, 5)
    for use_gat in (True, False):
        model = hiermt.TGCN_HierarchicalMT(5, 8, use_gat=use_gat, backend=backend)
        for weight in (edge_weight, None):
            long, short = model(x, edge_index, weight), model(x, edge_index.int(), weight)
            assert torch.equal(long[0], short[0])
            testing.assert_close(long[0], pyg.like(model)(x, edge_index, weight)[0])


def test_cell_equals_one_step_of_pyg(backend: str) -> None:
    cell = hiermt.TGCNCell(5, 8, backend=backend)
    other = pyg.Cell(5, 8)
    other.load_state_dict(cell.state_dict(), strict=True)
    edge_index, edge_weight = testing.stock_graph(20, 60)
    x, h = torch.randn(20, 5), torch.randn(20, 8)
    testing.assert_close(cell(x, edge_index, edge_weight, h), other(x, edge_index, edge_weight, h))
    testing.assert_close(cell(x, edge_index, edge_weight), other(x, edge_index, edge_weight, torch.zeros(20, 8)))


def test_stepping_cells_equals_the_backbone(backend: str) -> None:
    model = hiermt.TGCN(5, 3, 8, 2, torch.nn.Tanh(), backend=backend)
    edges = testing.stock_graph(20, 60)
    x = torch.randn(20, 6, 5)
    states = [torch.zeros(20, 8), torch.zeros(20, 8)]
    for t in range(6):
        step = x[:, t]
        for i, cell in enumerate(model.cells):
            states[i] = step = cell(step, *edges, states[i])
    testing.assert_close(model(x, *edges), torch.tanh(model.out[0](states[-1])))


def test_bfloat16_stays_near_float32(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    edges = testing.stock_graph(20, 60)
    x = torch.randn(20, 6, 5)
    expected = model(x, *edges)[0]
    half = model.bfloat16()(x.bfloat16(), *edges)[0]
    assert half.dtype == torch.bfloat16
    testing.assert_close(half, expected)


@pytest.mark.hostile("rounding")
def test_float32_error_is_at_most_twice_that_of_pyg(variant: dict[str, Any], backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(13, 16, 2, **variant, backend=backend)
    edge_index, edge_weight = graph_for(variant, torch.float32)
    x = torch.randn(16, 20, 25, 13)
    exact = pyg.like(model).double()
    weight = None if edge_weight is None else edge_weight.double()
    with torch.no_grad():
        ours = torch.cat(model(x, edge_index, edge_weight), dim=-1)
        every, index = x.flatten(0, 1), testing.batched(edge_index, edge_weight, 20, 16)
        theirs = torch.cat(pyg.like(model)(every, *index), dim=-1).view_as(ours)
        truth = torch.cat(exact(every.double(), *testing.batched(edge_index, weight, 20, 16)), dim=-1).view_as(ours)
    # Root mean square: the largest of a few errors near half an ulp is luck.
    assert (ours - truth).square().mean().sqrt() <= 2 * (theirs - truth).square().mean().sqrt()


@pytest.mark.hostile("empty")
def test_empty_sequences_and_batches(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    edges = testing.stock_graph(20, 60)
    expected = model.signal_head(model.tgcn_backbone.out(torch.zeros(20, 8)))
    testing.assert_close(model(torch.zeros(20, 0, 5), *edges)[0], expected)
    assert model(torch.zeros(0, 20, 6, 5), *edges)[0].shape == (0, 20, 2)
    lonely = model(torch.randn(1, 6, 5), torch.zeros(2, 0, dtype=torch.long), torch.zeros(0))
    assert lonely[0].isfinite().all()


@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_bad_numbers_spread_as_in_pyg(value: float, variant: dict[str, Any], backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, 2, **variant, backend=backend)
    edges = graph_for(variant, torch.float32)
    x = torch.randn(20, 6, 5)
    x[3, 2, 1] = value
    for ours, theirs in zip(model(x, *edges), pyg.like(model)(x, *edges), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        testing.assert_close(ours, theirs)


@pytest.mark.hostile("edge-weight")
@pytest.mark.parametrize("weight", [float("nan"), -1.0, float("inf")])
def test_bad_weights_spread_as_in_pyg(weight: float, backend: str) -> None:
    edge_index, edge_weight = testing.stock_graph(20, 60, isolated=2)
    edge_weight[7] = weight
    x = torch.randn(20, 6, 5)
    for use_gat in (True, False):
        model = hiermt.TGCN_HierarchicalMT(5, 8, use_gat=use_gat, backend=backend)
        for ours, theirs in zip(
            model(x, edge_index, edge_weight), pyg.like(model)(x, edge_index, edge_weight), strict=True
        ):
            assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.hostile("strides")
def test_strided_inputs_give_the_same_numbers(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    edges = testing.stock_graph(20, 60)
    series = torch.randn(20, 30, 5)
    windows = series.unfold(1, 6, 3).permute(1, 0, 3, 2)  # [B, N, T, F], overlapping views
    contiguous = gradients(model, windows.contiguous(), *edges)
    assert torch.equal(model(windows, *edges)[0], contiguous["signal"])
    sliced = torch.randn(40, 12, 10)[::2, ::2, ::2]
    assert torch.equal(model(sliced, *edges)[0], model(sliced.contiguous(), *edges)[0])
    stride_zero = torch.randn(20, 1, 5).expand(20, 6, 5)
    assert torch.equal(model(stride_zero, *edges)[0], model(stride_zero.contiguous(), *edges)[0])


@pytest.mark.hostile("determinism")
def test_bitwise_equal_over_runs_and_threads(variant: dict[str, Any], backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(13, 16, 2, **variant, backend=backend)
    edges = graph_for(variant, torch.float32)
    x = torch.randn(20, 25, 13)
    first = gradients(model, x, *edges)
    threads = torch.get_num_threads()
    try:
        for run in range(5):
            torch.set_num_threads(1 + run % 2)
            again = gradients(model, x, *edges)
            for name, value in first.items():
                if backend == "native":
                    assert torch.equal(value, again[name]), name
    finally:
        torch.set_num_threads(threads)


def test_gradcheck(variant: dict[str, Any], backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(2, 3, 2, **variant, backend=backend).double()
    edge_index = torch.tensor([[0, 1, 2, 2, 1], [1, 0, 1, 1, 1]])
    edge_weight = None if variant.get("edge_dim", 1) is None else torch.rand(5, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(  # type: ignore[no-any-return]
            model, dict(zip(names, parameters, strict=True)), (x, edge_index, edge_weight)
        )

    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *model.parameters()), fast_mode=True)
