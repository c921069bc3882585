"""GAT and GCN with the arguments of the published classes, against PyG's convolutions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hiermt
from hiermt import testing

gnn = pytest.importorskip("torch_geometric.nn", reason="the outside oracle needs torch-geometric")


def edges(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """With loops, one of them twice, and isolated nodes."""
    edge_index, edge_weight = testing.stock_graph(20, 60, isolated=2)
    loops = torch.tensor([[3, 4, 4], [3, 4, 4]])
    return torch.cat([edge_index, loops], dim=1), torch.cat([edge_weight, torch.tensor([0.5, 2.0, 0.25])]).to(dtype)


class Published(nn.Module):
    def __init__(self, use_gat: bool, sizes: list[int], **options: Any) -> None:
        super().__init__()
        kind = gnn.GATv2Conv if use_gat else gnn.GCNConv
        self.convs = nn.ModuleList(kind(a, b, **options) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor, *edges: Tensor) -> Tensor:
        for conv in self.convs[:-1]:
            x = F.leaky_relu(conv(x, *edges))
        return self.convs[-1](x, *edges)  # type: ignore[no-any-return]


@pytest.mark.parametrize("sizes", [[6], [7, 7], [7, 4, 6]])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["gat", "gcn", "improved"])
def test_equals_pyg_in_values_and_gradients(kind: str, bias: bool, sizes: list[int], backend: str) -> None:
    if kind == "gat":
        ours: nn.Module = hiermt.GAT(5, sizes, bias=bias, backend=backend)
        theirs = Published(True, [5, *sizes], bias=bias, edge_dim=1)
    else:
        improved = kind == "improved"
        ours = hiermt.GCN(5, layer_sizes=sizes, bias=bias, improved=improved, backend=backend)
        theirs = Published(False, [5, *sizes], bias=bias, improved=improved)
    theirs.double()
    ours.double().load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    seed, results = torch.randn(20, sizes[-1], dtype=torch.float64), []
    for module in (ours, theirs):
        y = module(x, *edges(torch.float64))
        results.append([y, *torch.autograd.grad(y, [x, *module.parameters()], seed)])
    for i, (one, other) in enumerate(zip(*results, strict=True)):
        testing.assert_close(one, other, gradient=i > 0, message=f"result {i}")


def test_improved_without_weights_equals_pyg(backend: str) -> None:
    """PyG reads `improved` where there are edge weights."""
    ours, theirs = hiermt.GCN(5, [7, 6], improved=True, backend=backend), Published(False, [5, 7, 6], improved=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, edge_index = torch.randn(20, 5), edges(torch.float32)[0]
    testing.assert_close(ours(x, edge_index), theirs(x, edge_index))


def test_loop_weight_zero_equals_pyg_without_self_loops(backend: str) -> None:
    """Loops that are there count, each of them."""
    conv = gnn.GCNConv(5, 6, add_self_loops=False).double()
    x = torch.randn(20, 3, 5, dtype=torch.float64)
    parameters = [conv.lin.weight, conv.bias]
    for weight in (edges(torch.float64)[1].requires_grad_(), None):
        graph = hiermt.Graph(edges(torch.float64)[0], weight, 20)
        y = hiermt.functional.gcn_conv(x, graph, *parameters, loop_weight=0.0, backend=backend)
        wanted = torch.stack([conv(step, edges(torch.float64)[0], weight) for step in x.unbind(1)], dim=1)
        testing.assert_close(y, wanted)
        if weight is not None:
            one, other = (torch.autograd.grad(value.square().sum(), weight)[0] for value in (y, wanted))
            testing.assert_close(one, other, gradient=True)


def test_gat_takes_no_loop_weight() -> None:
    stack = hiermt.GAT(5, 6)
    graph = hiermt.Graph(*edges(torch.float32), 20)
    with pytest.raises(ValueError, match=r"loop_weight: expected 1\.0 with a GATv2"):
        hiermt.functional.conv_stack(torch.randn(20, 2, 5), graph, stack.op_parameters() or [], loop_weight=2.0)


def test_defaults_are_the_published_ones() -> None:
    for kind in (hiermt.GAT, hiermt.GCN):
        assert [conv.bias.numel() for conv in kind(8).convs] == [32, 32]  # type: ignore[union-attr,operator]


def test_a_cell_calls_a_stack_of_other_options(backend: str) -> None:
    """The kernel of a layer knows neither sizes of their own nor `improved`."""
    for stack in (hiermt.GCN(5, [3, 7], backend=backend), hiermt.GCN(5, 7, improved=True, backend=backend)):
        model = hiermt.TGCN(5, 3, 7, 1, use_gat=False, layout="NTF", backend=backend)
        model.cells[0].gcn = stack
        x = torch.randn(20, 2, 5)
        h = torch.zeros(20, 7)
        for step in x.unbind(1):
            h = model.cells[0](step, *edges(torch.float32), h)
        testing.assert_close(model(x, *edges(torch.float32)), model.out(h))


BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "bias by position": (TypeError, "conv_layers: .*bias=True", lambda: hiermt.GAT(8, [16, 16], True)),  # type: ignore[arg-type]
    "both names": (ValueError, "layer_sizes: hidden_size=4", lambda: hiermt.GCN(8, 4, layer_sizes=[4])),
    "no size": (ValueError, "hidden_size: expected one or more sizes", lambda: hiermt.GCN(8, [])),
    "another number": (ValueError, "hidden_size: expected 3 sizes, got 2", lambda: hiermt.GCN(8, [4, 4], 3)),
    "zero": (ValueError, r"layer_sizes\[1\]: expected 1 or more", lambda: hiermt.GAT(8, layer_sizes=[4, 0])),
    "float": (TypeError, r"hidden_size\[0\]: expected an integer", lambda: hiermt.GAT(8, [4.0])),  # type: ignore[list-item]
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_other_sizes(case: str) -> None:
    error, message, make = BAD[case]
    with pytest.raises(error, match=message):
        make()
