"""The cells of PyTorch Geometric Temporal, against their equations on PyG's own convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt import testing
from hiermt.nn import temporal
from support.present import masks as present_masks
from support.present import subgraph

oracle = pytest.importorskip("hiermt.testing.pyg_temporal", reason="the outside oracle needs torch-geometric")
# improved, cached, add_self_loops
OPTIONS = [(False, False, True), (True, False, True), (False, False, False), (True, False, False)]
# F < H, F = H, F > H
SIZES = [(2, 7), (5, 5), (9, 4)]


def edges(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    edge_index, edge_weight = testing.stock_graph(20, 60, isolated=2)
    loops = torch.tensor([[3, 4, 4], [3, 4, 4]])
    return torch.cat([edge_index, loops], dim=1), torch.cat([edge_weight, torch.tensor([0.5, 2.0, 0.25])]).to(dtype)


def loop(cell: Any, x: Tensor, *arguments: Any) -> Tensor:
    """A sequence as users of the library run it."""
    *edge, h = arguments
    for step in x.unbind(-1):
        h = cell(step, *edge, h)
    return h


def compare(ours: Any, theirs: nn.Module, run: Any, x: Tensor, h: Tensor | None) -> None:
    """Values and the gradients of x, the weights, the state and all parameters."""
    theirs.to(x.dtype)
    ours.to(x.dtype).load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    edge_index, edge_weight = edges(x.dtype)
    leaves = [x.requires_grad_(), edge_weight.requires_grad_(), *([] if h is None else [h.requires_grad_()])]
    results: list[list[Tensor]] = []
    for module, call in ((ours, run), (theirs, None)):
        y = (call or (lambda *a: theirs(*a) if "_attention" in theirs._parameters else loop(theirs, *a)))(
            x, edge_index, edge_weight, h
        )
        seed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        names = dict(module.named_parameters())
        results.append([y, *torch.autograd.grad(y, [*leaves, *(names[name] for name in sorted(names))], seed)])
    for i, (one, other) in enumerate(zip(*results, strict=True)):
        if i == 2:  # of a repeated loop only the last counts where loops are added; PyG hands its gradient to each
            one, other = one[:60], other[:60]
        testing.assert_close(one.detach(), other.detach(), gradient=i > 0, scaled=True, message=f"result {i}")


@pytest.mark.parametrize("given", [True, False], ids=["state", "zeros"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_cells_equal_their_equations(sizes: tuple[int, int], options: Any, given: bool, backend: str) -> None:
    dtype = torch.float64
    ours = temporal.TGCN(*sizes, *options, backend=backend)
    h = torch.randn(20, sizes[1], dtype=dtype) if given else None
    x = torch.randn(20, sizes[0], 5, dtype=dtype)
    theirs = oracle.TGCN(*sizes, *options)
    compare(ours, theirs, ours.sequence, x, h)
    with torch.no_grad():
        whole = ours.sequence(x, *edges(dtype), h, return_sequence=True)
        assert whole.shape == (20, sizes[1], 5)
        for t in range(5):
            h = ours(x[..., t], *edges(dtype), h)
            testing.assert_close(whole[..., t], h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES)
def test_batches_equal_their_equations(sizes: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    x, h = torch.randn(3, 20, sizes[0], 5, dtype=dtype), torch.randn(3, 20, sizes[1], dtype=dtype)
    cell = temporal.TGCN2(*sizes, 3, backend=backend)
    compare(cell, oracle.TGCN(*sizes), cell.sequence, x, h)
    for given in (h, None):
        model = temporal.A3TGCN2(*sizes, 5, 3, backend=backend)
        compare(model, oracle.A3TGCN(*sizes, 5), model, x.detach(), given)
    single = temporal.A3TGCN(*sizes, 5, True, backend=backend)
    compare(single, oracle.A3TGCN(*sizes, 5, True), single, x[0].detach().clone(), h[0].detach().clone())


def test_a_batch_of_pyg_and_no_weights(backend: str) -> None:
    """A disjoint union, and edges that count 1 each."""
    ours, theirs = temporal.TGCN(3, 7, backend=backend), oracle.TGCN(3, 7)
    ours.load_state_dict(theirs.state_dict())
    edge_index, _ = testing.batched(edges(torch.float32)[0], None, 20, 4)
    x = torch.randn(80, 3)
    testing.assert_close(ours(x, edge_index), theirs(x, edge_index))
    graph = hiermt.Graph(edge_index, None, 80)
    testing.assert_close(ours(x, graph), theirs(x, edge_index))


@pytest.mark.parametrize("options", OPTIONS)
def test_no_weights_with_every_option(options: Any, backend: str) -> None:
    """PyG reads `improved` where there are edge weights."""
    ours, theirs = temporal.TGCN(3, 7, *options, backend=backend), oracle.TGCN(3, 7, *options)
    ours.load_state_dict(theirs.state_dict())
    edge_index, x = edges(torch.float32)[0], torch.randn(20, 3, 4)
    testing.assert_close(ours(x[..., 0], edge_index), theirs(x[..., 0], edge_index))
    testing.assert_close(ours.sequence(x, edge_index), loop(theirs, x, edge_index, None, None))
    ours.linear_z = nn.Sequential(ours.linear_z)
    testing.assert_close(ours.sequence(x, edge_index), loop(theirs, x, edge_index, None, None))


class Doubled(temporal.TGCN):
    def forward(self, X: Tensor, *arguments: Any) -> Tensor:  # type: ignore[override]
        return 2 * super().forward(X, *arguments)


def test_replaced_parts_are_called(backend: str) -> None:
    x, h = torch.randn(2, 20, 3, 4), torch.randn(2, 20, 7)
    cell, doubled = temporal.TGCN(3, 7, backend=backend), Doubled(3, 7, backend=backend)
    doubled.load_state_dict(cell.state_dict())
    given = edges(torch.float32)
    expected = h
    for step in x.unbind(-1):
        expected = 2 * cell(step, *given, expected)
    testing.assert_close(doubled.sequence(x, *given, h), expected)
    plain = cell.sequence(x, *given, h, return_sequence=True)
    cell.conv_r.register_forward_hook(lambda *_: None)
    testing.assert_close(cell.sequence(x, *given, h, return_sequence=True), plain)
    model = temporal.A3TGCN(3, 7, 4, backend=backend)
    plain = model(x, *given, h)
    model._base_tgcn.linear_z = nn.Sequential(model._base_tgcn.linear_z)
    testing.assert_close(model(x, *given, h), plain)
    model._base_tgcn.linear_z = nn.Sequential(nn.Linear(14, 7), nn.Tanh())
    assert not torch.allclose(model(x, *given, h), plain)


def test_constructors_and_seeds_are_those_of_the_library() -> None:
    torch.manual_seed(3)
    theirs = oracle.TGCN(3, 7).state_dict()
    torch.manual_seed(3)
    ours = temporal.TGCN2(in_channels=3, out_channels=7, batch_size=32, improved=True, cached=True, add_self_loops=True)
    assert list(ours.state_dict()) == list(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.state_dict().items())
    model = temporal.A3TGCN2(in_channels=3, out_channels=7, periods=4, batch_size=None)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    model.reset_parameters()
    assert not any(torch.equal(value, fresh[key]) for key, value in model.state_dict().items() if "bias" not in key)


BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "time first": (ValueError, r"X: expected .*; this looks like", lambda m, c, x: m(x.transpose(1, 2))),
    "features": (ValueError, r"X: expected \[N, 3, T\]", lambda m, c, x: m(x[:, :2])),
    "periods": (ValueError, "X: expected 4 periods", lambda m, c, x: m(x[..., :3], *edges(torch.float32))),
    "sequence as step": (ValueError, r"X: .*\.sequence", lambda m, c, x: c(x)),
    "one dimension": (ValueError, r"X: expected \[N, 3\]", lambda m, c, x: c(x[0, :, 0])),
    "state": (ValueError, r"H: expected a state \[20, 7\]", lambda m, c, x: c(x[..., 0], *edges(x.dtype), x[..., 0])),
    "dtype": (
        TypeError,
        "H: x is torch.float32, this state torch.float64",
        lambda m, c, x: m(x, *edges(x.dtype), torch.zeros(20, 7).double()),
    ),
    "no edges": (TypeError, "edge_index: .* got None", lambda m, c, x: m(x)),
    "nodes": (IndexError, "edge_index", lambda m, c, x: m(x[:4], *edges(x.dtype))),
    "list": (TypeError, "X: expected a Tensor", lambda m, c, x: m([x])),
    "no period": (ValueError, "periods: expected 1 or more", lambda m, c, x: temporal.A3TGCN(3, 7, 0)),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_by_name(case: str) -> None:
    error, message, call = BAD[case]
    with pytest.raises(error, match=message):
        call(temporal.A3TGCN(3, 7, 4), temporal.TGCN(3, 7), torch.randn(20, 3, 4))


def test_empty_inputs(backend: str) -> None:
    cell = temporal.TGCN(3, 7, backend=backend)
    h = torch.randn(20, 7)
    assert torch.equal(cell.sequence(torch.randn(20, 3, 0), *edges(torch.float32), h), h)
    assert cell.sequence(torch.randn(20, 3, 0), *edges(torch.float32), h, return_sequence=True).shape == (20, 7, 0)
    none = torch.zeros(2, 0, dtype=torch.long)
    assert cell(torch.randn(0, 20, 3), none).shape == (0, 20, 7)
    assert cell(torch.randn(0, 3), none).shape == (0, 7)


@pytest.mark.parametrize("options", OPTIONS)
def test_sequences_with_nodes_that_come_and_go(options: Any, backend: str) -> None:
    """Each step on the subgraph of the nodes that are there, in PyG; the others hold their state."""
    ours, theirs = temporal.TGCN(3, 4, *options, backend=backend).double(), oracle.TGCN(3, 4, *options).double()
    theirs.load_state_dict(ours.state_dict())
    present = present_masks(20, 6)["random"]
    x = torch.randn(20, 3, 6, dtype=torch.float64).masked_fill(~present.unsqueeze(1), torch.nan)
    h = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    edge_index, edge_weight = edges(torch.float64)
    y = ours.sequence(x, edge_index, edge_weight, h, return_sequence=True, present=present)
    state, states = h, []
    for t in range(6):
        there = present[:, t].nonzero()[:, 0]
        graph = subgraph((edge_index, edge_weight), there, 20)
        state = state.index_copy(0, there, theirs(x[there, :, t], *graph, state[there]))
        states.append(state)
    truth = torch.stack(states, dim=-1)
    testing.assert_close(y, truth)
    seed = torch.randn_like(y)
    got = torch.autograd.grad(y, [h, *ours.parameters()], seed)
    want = torch.autograd.grad(truth, [h, *theirs.parameters()], seed)
    for one, other in zip(got, want, strict=True):
        testing.assert_close(one, other, gradient=True, scaled=True)

    batch = torch.stack([x.nan_to_num(), x.nan_to_num()])
    both = ours.sequence(batch, edge_index, edge_weight, present=torch.stack([present, torch.ones_like(present)]))
    testing.assert_close(both[0], ours.sequence(x, edge_index, edge_weight, present=present))
    with pytest.raises(ValueError, match=r"present: expected shape \[20, 6\], got \[20, 5\]"):
        ours.sequence(x, edge_index, edge_weight, present=present[:, :5])
    ours.conv_r.register_forward_hook(lambda module, args, y: y)
    with pytest.raises(NotImplementedError, match="present: a part of this cell"):
        ours.sequence(x, edge_index, edge_weight, present=present)
