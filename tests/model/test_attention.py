"""A3T-GCN and the attention that models tell, against PyG."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import testing
from support.present import subgraph

pyg = pytest.importorskip("hiermt.testing.pyg", reason="the outside oracle needs torch-geometric")
EDGES = testing.stock_graph(20, 60, isolated=2)
KINDS: dict[str, dict[str, Any]] = {"gatv2": {}, "gcn": {"use_gat": False}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a3tgcn_equals_the_published_model_with_all_gradients(kind: str, dtype: torch.dtype, backend: str) -> None:
    model = hiermt.A3TGCN(5, 3, 7, 2, backend=backend, layout="NTF", **KINDS[kind]).to(dtype)
    oracle = pyg.AttentionBackbone(5, 3, 7, 2, **KINDS[kind]).to(dtype)
    oracle.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(oracle.state_dict(), strict=True)
    x, edges = torch.randn(20, 6, 5, dtype=dtype, requires_grad=True), (EDGES[0], EDGES[1].to(dtype))
    seed, results = torch.randn(20, 3, dtype=dtype), []
    for module in (model, oracle):
        named = dict(module.named_parameters())
        y = module(x, *edges)
        gradients = torch.autograd.grad(y, [x, *named.values()], seed)
        results.append({"y": y} | dict(zip(["x", *named], gradients, strict=True)))
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        testing.assert_close(value, results[1][name], gradient=name != "y", message=name)


def test_a3tgcn_takes_batches_windows_and_states(backend: str) -> None:
    model = hiermt.A3TGCN(5, 3, 7, backend=backend, layout="NTF")
    windows = hiermt.Windows(torch.randn(20, 30, 5), torch.tensor([4, 0, 24]), 6)
    h = [torch.randn(3, 20, 7) for _ in range(2)]
    y, last = model(windows, *EDGES, h, return_state=True)
    weights = model.step_weights(windows, *EDGES, h)
    assert weights.shape == (3, 20, 6)
    testing.assert_close(weights.sum(-1), torch.ones(3, 20))
    for i, x in enumerate(windows.gather()):
        one, ends = model(x, *EDGES, [state[i] for state in h], return_state=True)
        testing.assert_close(y[i], one)
        testing.assert_close(last[1][i], ends[1])
        testing.assert_close(weights[i], model.step_weights(x, *EDGES, [state[i] for state in h]))
    assert model(torch.randn(20, 0, 5), *EDGES).shape == (20, 3)


def test_windows_of_an_a3tgcn_share_their_days() -> None:
    from hiermt.nn.inputs import why_not_shared

    data = hiermt.data.WindowDataset(torch.randn(20, 40, 5), *EDGES, 6, *torch.zeros(2, 20, 40, dtype=torch.long))
    batch = next(iter(hiermt.data.WindowLoader(data, range(20), 4)))
    heads = hiermt.MultiTaskTGCN(5, 7, heads={"regime": 3})
    for model in (hiermt.A3TGCN(5, 3, 7), hiermt.TGCN(5, 3, 7), hiermt.TGCN_HierarchicalMT(5, 7), heads):
        assert why_not_shared(model, batch) is None


def attention(oracle: Any, x: Tensor, edges: Any) -> tuple[Tensor, Tensor]:
    """What PyG's convolutions return when they are stepped through time: ``[layers, convolutions, E, T]``."""
    states = [x.new_zeros(x.size(0), 7) for _ in oracle.cells]
    found: list[list[list[Tensor]]] = [[[] for _ in cell.gcn.convs] for cell in oracle.cells]
    for step in x.unbind(1):
        for i, cell in enumerate(oracle.cells):
            y = step
            for k, conv in enumerate(cell.gcn.convs):
                y, (edge_index, alpha) = conv(y, *edges, return_attention_weights=True)
                y = torch.nn.functional.leaky_relu(y, 0.01)
                found[i][k].append(alpha[:, 0])
            states[i] = step = cell(step, *edges, states[i])
    return edge_index, torch.stack([torch.stack([torch.stack(k, dim=1) for k in cell]) for cell in found])


@pytest.mark.parametrize("edge_dim", [1, None])
def test_attention_weights_equal_pyg(edge_dim: int | None, backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 7, edge_dim=edge_dim, backend=backend, layout="NTF").double()
    edge_index = torch.cat([EDGES[0], torch.tensor([[3, 4, 0], [3, 4, 1]])], dim=1)
    weight = torch.cat([EDGES[1], torch.tensor([0.5, 0.25, 0.125])]).double() if edge_dim else None
    x = torch.randn(20, 4, 5, dtype=torch.float64)
    wanted_edges, wanted = attention(pyg.like(model).tgcn_backbone, x, (edge_index, weight))
    found_edges, found = model.attention_weights(x, edge_index, weight)
    assert torch.equal(found_edges, wanted_edges)
    testing.assert_close(found, wanted)
    # A batch on one graph, a disjoint union of equal graphs, and cells that are called.
    batch = torch.stack([x, x.flip(0)])
    _, together = model.attention_weights(batch, edge_index, weight)
    assert together.shape == (2, 2, 2, found_edges.size(1), 4)
    testing.assert_close(together[:, :, 0], wanted)
    union = testing.batched(edge_index, weight, 20, 2)
    model.tgcn_backbone.cells[0].register_forward_hook(lambda *_: None)
    union_edges, union_found = model.attention_weights(batch.flatten(0, 1), *union)
    union_wanted = attention(pyg.like(model).tgcn_backbone, batch.flatten(0, 1), union)
    assert torch.equal(union_edges, union_wanted[0])
    testing.assert_close(union_found, union_wanted[1])


def attention_of_those_present(
    oracle: Any, x: Tensor, edge_index: Tensor, weight: Tensor | None, present: Tensor
) -> list[Tensor]:
    """What PyG's convolutions return on the subgraph of each day's nodes: ``[layers, convolutions, E of the day]``."""
    states = [x.new_zeros(x.size(0), 7) for _ in oracle.cells]
    days = []
    for t in range(x.size(1)):
        nodes = present[:, t].nonzero()[:, 0]
        edges = subgraph((edge_index, weight), nodes, x.size(0))
        step, found = x[nodes, t], []
        for i, cell in enumerate(oracle.cells):
            y = step
            for conv in cell.gcn.convs:
                y, (_, alpha) = conv(y, *edges, return_attention_weights=True)
                y = torch.nn.functional.leaky_relu(y, 0.01)
                found.append(alpha[:, 0])
            step = cell(step, *edges, states[i][nodes])
            states[i] = states[i].index_copy(0, nodes, step)
        days.append(torch.stack(found).unflatten(0, (len(oracle.cells), -1)))
    return days


@pytest.mark.parametrize("part", ["as built", "hooked cell", "replaced projection"])
@pytest.mark.parametrize("edge_dim", [1, None])
def test_attention_weights_of_stocks_that_come_and_go(edge_dim: int | None, part: str, backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 7, edge_dim=edge_dim, backend=backend, layout="NTF").double()
    oracle = pyg.like(model).tgcn_backbone
    edge_index = torch.cat([EDGES[0], torch.tensor([[3, 4, 0], [3, 4, 1]])], dim=1)
    weight = torch.cat([EDGES[1], torch.tensor([0.5, 0.25, 0.125])]).double() if edge_dim else None
    x = torch.randn(20, 5, 5, dtype=torch.float64)
    present = torch.rand(20, 5) < 0.7
    present[7], present[:, 3] = False, False
    if part == "hooked cell":
        model.tgcn_backbone.cells[0].register_forward_hook(lambda *_: None)
    if part == "replaced projection":
        lin = model.tgcn_backbone.cells[0].gcn.convs[0].lin_l
        model.tgcn_backbone.cells[0].gcn.convs[0].lin_l = torch.nn.Sequential(lin)
    wanted = attention_of_those_present(oracle, x, edge_index, weight, present)
    x = x.masked_fill(~present.unsqueeze(-1), torch.nan)
    (source, target), found = model.attention_weights(x, edge_index, weight, present=present)
    for t, day in enumerate(wanted):
        there = present[source, t] & present[target, t]
        testing.assert_close(found[:, :, there, t], day)
        assert not found[:, :, ~there, t].any()
    # A batch, and windows of a series that holds the mask.
    batch, masks = torch.stack([x[:, :4], x[:, 1:]]), torch.stack([present[:, :4], present[:, 1:]])
    _, together = model.attention_weights(batch, edge_index, weight, present=masks)
    _, second = model.attention_weights(batch[1], edge_index, weight, present=masks[1])
    testing.assert_close(together[:, :, 1], second)
    windows = hiermt.Windows(x, torch.tensor([0, 1]), 4, present)
    testing.assert_close(model.attention_weights(windows, edge_index, weight)[1], together)
    with pytest.raises(ValueError, match=r"present: expected shape \[20, 5\], got \[20, 4\]"):
        model.attention_weights(x, edge_index, weight, present=present[:, :4])
    with pytest.raises(ValueError, match="windows hold the mask"):
        model.attention_weights(windows, edge_index, weight, present=present)


@pytest.mark.hostile("empty")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("nodes", "steps"), [(20, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("lead", [(), (0,), (2,)])
def test_attention_weights_of_nothing(lead: tuple[int, ...], nodes: int, steps: int, masked: bool) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 7, layout="NTF")
    edges = EDGES if nodes else (EDGES[0][:, :0], EDGES[1][:0])
    present = torch.ones(*lead, nodes, steps, dtype=torch.bool) if masked else None
    index, alpha = model.attention_weights(torch.randn(*lead, nodes, steps, 5), *edges, present=present)
    assert alpha.shape == (2, 2, *lead, index.size(1), steps)


def test_a_single_step_and_other_stacks() -> None:
    stack, x = hiermt.GAT(5, [7, 6]), torch.randn(20, 5)
    edge_index, alpha = stack.attention_weights(x, *EDGES)
    assert alpha.shape == (2, edge_index.size(1))
    testing.assert_close(alpha[:, None], stack.attention_weights(x.unsqueeze(1), *EDGES)[1].transpose(1, 2))
    with pytest.raises(TypeError, match="attention_weights: cell 0 has a GCN, expected a GAT"):
        hiermt.TGCN(5, 3, 7, use_gat=False).attention_weights(x.unsqueeze(1), *EDGES)
    stack.convs[0] = torch.nn.Linear(5, 7)
    with pytest.raises(TypeError, match=r"attention_weights: convs\[0\] is a Linear"):
        stack.attention_weights(x, *EDGES)
