"""Public functions: every backend, what they refuse, autocast, compile, threads and forks."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import hiermt
from hiermt import functional, testing
from hiermt.native import extension
from support.in_worker import Forwards
from support.present_layer import BACKENDS

EDGES = testing.stock_graph(20, 60)


def layer(dtype: torch.dtype = torch.float32) -> hiermt.TGCNCell:
    return hiermt.TGCNCell(5, 8).to(dtype)


def graph() -> hiermt.Graph:
    return hiermt.Graph(*EDGES, 20)


@pytest.mark.hostile("empty", "unwritten")
def test_weights_have_a_zero_gradient_through_no_channels(backend: str) -> None:
    def gradient(hidden: int, value: float) -> Tensor:
        weight = EDGES[1].clone().requires_grad_()
        shapes = ((hidden, 5), (hidden,), (hidden, 5), (hidden,), (hidden,), (hidden,), (hidden, 1))
        x = torch.full((20, 6, 5), value, requires_grad=True)
        y = functional.gatv2_conv(x, hiermt.Graph(EDGES[0], weight, 20), *map(torch.randn, shapes), backend=backend)
        return torch.autograd.grad(y.sum(), weight, allow_unused=True, materialize_grads=True)[0]

    gradient(8, torch.nan)  # leaves NaN in the working memory
    assert not gradient(0, 1.0).any()


@pytest.mark.parametrize("activation", ["none", "leaky_relu", "sigmoid"])
def test_convolutions_equal_pyg(activation: str, backend: str) -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    apply = {
        "none": lambda y: y,
        "leaky_relu": lambda y: torch.nn.functional.leaky_relu(y, 0.01),
        "sigmoid": torch.sigmoid,
    }[activation]
    x = torch.randn(20, 6, 5)
    gat, gcn = nn.GATv2Conv(5, 8, edge_dim=1), nn.GCNConv(5, 8)
    params = [
        gat.lin_l.weight, gat.lin_l.bias, gat.lin_r.weight, gat.lin_r.bias, gat.att, gat.bias, gat.lin_edge.weight
    ]  # fmt: skip
    ours = functional.gatv2_conv(x, graph(), *params, activation=activation, backend=backend)
    theirs = torch.stack([apply(gat(x[:, t], *EDGES)) for t in range(6)], dim=1)
    testing.assert_close(ours, theirs)
    ours = functional.gcn_conv(x, graph(), gcn.lin.weight, gcn.bias, activation=activation, backend=backend)
    theirs = torch.stack([apply(gcn(x[:, t], *EDGES)) for t in range(6)], dim=1)
    testing.assert_close(ours, theirs)


def test_stacks_take_two_three_and_four_dimensions(backend: str) -> None:
    for stack in (hiermt.GAT(5, 8, backend=backend), hiermt.GCN(5, 8, 3, backend=backend)):
        x = torch.randn(3, 20, 6, 5)
        full = stack(x, *EDGES)
        assert full.shape == (3, 20, 6, 8)
        testing.assert_close(stack(x[1], *EDGES), full[1])
        testing.assert_close(stack(x[1, :, 2], *EDGES), full[1, :, 2])


def test_scan_goes_on_from_a_state(backend: str) -> None:
    gates = layer().gates()
    x, g = torch.randn(20, 6, 5), torch.rand(20, 6, 8)
    whole = functional.gated_scan(x, g, None, gates, backend=backend)
    first = functional.gated_scan(x[:, :4], g[:, :4], None, gates, backend=backend)
    rest = functional.gated_scan(x[:, 4:], g[:, 4:], first[:, -1], gates, backend=backend)
    testing.assert_close(torch.cat([first, rest], dim=1), whole)
    last = functional.gated_scan(x, g, None, gates, sequence=False, backend=backend)
    testing.assert_close(last, whole[:, -1])


@pytest.mark.hostile("wrong-tensor")
@pytest.mark.parametrize("shape", [(20, 6, 4), (20, 5), (20, 6, 5, 1, 1)])
def test_wrong_shapes_are_one_sentence(shape: tuple[int, ...], backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    with pytest.raises(ValueError, match="x: expected"):
        model(torch.randn(shape), *EDGES)


def test_the_other_layout_is_named() -> None:
    x = torch.randn(20, 5, 6)
    with pytest.raises(ValueError, match="layout='NFT'"):
        hiermt.TGCN_HierarchicalMT(5, 8)(x, *EDGES)
    with pytest.raises(ValueError, match="layout='NTF'"):
        hiermt.TGCN_HierarchicalMT(5, 8, layout="NFT")(x.transpose(1, 2), *EDGES)


@pytest.mark.hostile("wrong-tensor")
def test_wrong_dtypes_are_one_sentence(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    with pytest.raises(TypeError, match=r"x is torch.float64, .* torch.float32"):
        model(torch.randn(20, 6, 5).double(), *EDGES)
    with pytest.raises(TypeError, match="x: expected a floating point Tensor"):
        model(torch.ones(20, 6, 5, dtype=torch.long), *EDGES)
    with pytest.raises(TypeError, match="x: expected a floating point Tensor"):
        model([[1.0]], *EDGES)


@pytest.mark.hostile("wrong-tensor")
def test_another_device_is_one_sentence() -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    with pytest.raises(ValueError, match="x is on meta, the graph on cpu"):
        model(torch.randn(20, 6, 5, device="meta"), hiermt.Graph(*EDGES, 20))
    with pytest.raises(ValueError, match="edge_weight is on meta, edge_index on cpu"):
        model(torch.randn(20, 6, 5), EDGES[0], EDGES[1].to("meta"))


@pytest.mark.hostile("edge-weight")
def test_weights_are_never_ignored(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, edge_dim=None, backend=backend)
    with pytest.raises(ValueError, match=r"edge_weight=None, or build the model with edge_dim=1"):
        model(torch.randn(20, 6, 5), *EDGES)
    with pytest.raises(ValueError, match="edge_weight"):
        model(torch.randn(20, 6, 5), graph())
    assert model(torch.randn(20, 6, 5), EDGES[0])[0].isfinite().all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"in_channels": 0},
        {"hidden_size": 0},
        {"layers_nb": 0},
        {"conv_layers": 0},
        {"edge_dim": 3},
        {"conv_activation": "before"},
        {"layout": "TNF"},
        {"backend": "fast"},
        {"hidden_size": 2.5},
    ],
)
def test_wrong_hyper_parameters_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        hiermt.TGCN_HierarchicalMT(**{"in_channels": 5, "hidden_size": 8, **arguments})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype(dtype: torch.dtype) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    x = torch.randn(20, 6, 5)
    expected = model(x, *EDGES)[0]
    with torch.autocast("cpu", dtype=dtype):
        found = model(x, *EDGES)[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    found.float().square().sum().backward()
    assert model.signal_head.weight.grad is not None
    assert model.signal_head.weight.grad.dtype == torch.float32


@pytest.mark.hostile("dtypes")
def test_grad_scaler_step_equals_a_plain_step() -> None:
    models = [hiermt.TGCN_HierarchicalMT(5, 8) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(20, 6, 5)
    for model, scaler in zip(models, (None, torch.amp.GradScaler("cpu")), strict=True):
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = model(x, *EDGES)[0].square().sum()
        if scaler is None:
            loss.backward()
            sgd.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(sgd)
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        testing.assert_close(ours, theirs)


@pytest.mark.hostile("compilers")
@pytest.mark.parametrize("use_gat", [True, False])
def test_compiles_without_a_break_for_any_size(use_gat: bool, backend: str) -> None:
    torch._dynamo.reset()
    model = hiermt.TGCN_HierarchicalMT(5, 8, 1, use_gat, backend=backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for nodes in (20, 33, 47):
        edge_index, edge_weight = testing.stock_graph(nodes, 3 * nodes // 2 * 2)
        x = torch.randn(nodes, 2, 5)  # the twin is traced step by step
        for found, wanted in zip(compiled(x, edge_index, edge_weight), model(x, edge_index, edge_weight), strict=True):
            testing.assert_close(found, wanted)
    assert counter.frame_count <= 2
    compiled(x, edge_index, edge_weight)[0].sum().backward()
    assert model.signal_head.weight.grad is not None


@pytest.mark.parametrize("use_gat", [True, False])
def test_compiles_without_a_break_on_a_graph_not_used_before(use_gat: bool, backend: str) -> None:
    torch._dynamo.reset()
    model = hiermt.TGCN_HierarchicalMT(5, 8, 1, use_gat, backend=backend)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    graph = hiermt.Graph(*EDGES, 20)
    x = torch.randn(20, 2, 5)
    traced = compiled(x, graph)
    for found, wanted, again in zip(traced, model(x, graph), compiled(x, graph), strict=True):
        testing.assert_close(found, wanted)
        testing.assert_close(again, wanted)


def test_compiles_without_a_break_as_the_first_thing_of_a_process() -> None:
    program = """
import torch, hiermt
from hiermt.testing import stock_graph

model, criterion = hiermt.TGCN_HierarchicalMT(5, 8, 1), hiermt.MultiTaskLoss()

def step(x, edge_index, edge_weight, labels):
    return criterion.terms(*model(x, edge_index, edge_weight), labels, labels).total

compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
compiled(torch.randn(20, 4, 5), *stock_graph(20, 60), torch.ones(20, dtype=torch.int64)).backward()
"""
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.hostile("double-backward")
def test_double_backward_is_refused_by_name() -> None:
    reason = extension.why_not_native("cpu")
    if reason:
        pytest.skip(reason)
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend="native")
    x = torch.randn(20, 6, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x, *EDGES)[0].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        grad.sum().backward()


def test_gradients_only_where_asked(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lin_u" in name)
    x = torch.randn(20, 6, 5)
    model(x, *EDGES)[0].sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lin_u" in name)


def test_edge_terms_without_weights_get_no_gradient(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    model(torch.randn(20, 6, 5), EDGES[0])[0].sum().backward()
    for name, parameter in model.named_parameters():
        if "lin_edge" in name:
            assert parameter.grad is None, name


def test_a_head_that_is_not_used_gets_no_gradient(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    model(torch.randn(20, 6, 5), *EDGES)[0].sum().backward()
    assert model.signal_head.weight.grad is not None
    assert model.direction_head.weight.grad is None
    assert model.direction_head.bias.grad is None


def test_a_number_of_nodes_that_fits_no_copy_is_one_sentence(backend: str) -> None:
    cell = layer()
    with pytest.raises(ValueError, match="not a multiple of the graph's 20"):
        functional.tgcn_layer(torch.randn(21, 6, 5), graph(), cell.gcn.op_parameters(), cell.gates(), backend=backend)
    with pytest.raises(ValueError, match="conv_activation"):
        functional.tgcn_layer(
            torch.randn(20, 6, 5), graph(), cell.gcn.op_parameters(), cell.gates(), conv_activation="x", backend=backend
        )


@pytest.mark.hostile("strides")
def test_stride_zero_and_transposed_gradients(backend: str) -> None:
    cell = layer()
    x = torch.randn(20, 6, 5)
    stack = functional.tgcn_layer
    found = []
    for make in (
        lambda y: y.sum(),  # hands down a gradient with stride 0
        lambda y: (y * torch.ones_like(y)).sum(),
        lambda y: y.transpose(0, 2).contiguous().sum(),
    ):
        leaf = x.clone().requires_grad_()
        y = stack(leaf, graph(), cell.gcn.op_parameters(), cell.gates(), backend=backend)
        found.append(torch.autograd.grad(make(y), leaf)[0])
    testing.assert_close(found[0], found[1])
    testing.assert_close(found[2], found[1])


@pytest.mark.hostile("workers")
def test_threads_at_once_give_the_same_numbers(backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    xs = [torch.randn(20, 6, 5) for _ in range(8)]
    edges = hiermt.Graph(*EDGES, 20)
    expected = [model(x, edges)[0].detach() for x in xs]
    results: dict[int, Tensor] = {}

    def run(i: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                results[i] = model(xs[i], edges)[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 8
    for i, value in results.items():
        testing.assert_close(value, expected[i])


@pytest.mark.hostile("workers")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_forward_in_a_worker_after_a_forward_in_the_parent(context: str) -> None:
    """Of every backend in the same worker, which takes longer to start than to compute."""
    dataset = Forwards([hiermt.TGCN_HierarchicalMT(5, 8, backend=backend) for backend in BACKENDS])
    expected = [dataset[i] for i in range(4)]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context=context, timeout=60
    )
    for item, wanted in zip(loader, expected, strict=True):
        for found, logits in zip(item, wanted, strict=True):
            testing.assert_close(found, logits)
