"""Models leave Python through ``torch.export`` with open sizes; ``torch.jit`` is refused by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import hiermt
from hiermt import functional, testing

FEATURES, HIDDEN = 3, 5


def problem(nodes: int, steps: int, edges: int, batch: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    edge_index, edge_weight = testing.stock_graph(nodes, edges)
    lead = (nodes,) if batch is None else (batch, nodes)
    return torch.randn(*lead, steps, FEATURES), edge_index, edge_weight


def check(module: nn.Module, program: Any, args: tuple[Tensor, ...]) -> None:
    found, expected = program.module()(*args), module(*args)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("use_gat", [True, False])
def test_open_nodes_edges_and_steps(backend: str, use_gat: bool, strict: bool) -> None:
    if backend == "reference" and strict != use_gat:
        pytest.skip("the twin is slow to export: one convolution is strict, the other is not")
    model = hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN, use_gat=use_gat, backend=backend).eval()
    # The twin walks through time in Python, which keeps T.
    shape = {0: Dim("n")} if backend == "reference" else {0: Dim("n"), 1: Dim("t")}
    edges = Dim("e")
    program = export(model, problem(12, 2, 40), dynamic_shapes=(shape, {1: edges}, {0: edges}), strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    for nodes, steps, count in ((15, 2, 60), (3, 2, 4), (40, 9, 100)):
        if backend == "native" or steps == 2:
            check(model, loaded, problem(nodes, steps, count))


@pytest.mark.parametrize("strict", [False, True])
def test_open_batch_and_nodes(strict: bool) -> None:
    model = hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN).eval()
    edges = Dim("e")
    shapes = ({0: Dim("b"), 1: Dim("n"), 2: Dim("t")}, {1: edges}, {0: edges})
    program = export(model, problem(12, 6, 40, 4), dynamic_shapes=shapes, strict=strict)
    for batch, nodes, steps in ((2, 12, 6), (5, 9, 7)):
        check(model, program, problem(nodes, steps, 30, batch))


def test_parts_and_variants() -> None:
    x, edge_index, edge_weight = problem(12, 6, 40)
    nodes, edges = Dim("n"), Dim("e")
    open_x, open_edges = {0: nodes}, ({1: edges}, {0: edges})
    more, more_index, more_weight = problem(17, 6, 70)
    gat = hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN, layout="NFT").eval()
    program = export(gat, (x.mT, edge_index, edge_weight), dynamic_shapes=(open_x, *open_edges))
    check(gat, program, (more.mT, more_index, more_weight))
    plain = hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN, edge_dim=None).eval()
    program = export(plain, (x, edge_index), dynamic_shapes=(open_x, open_edges[0], None)[:2])
    check(plain, program, (more, more_index))
    backbone = hiermt.TGCN(FEATURES, 2, HIDDEN, output_activation=nn.Sigmoid()).eval()
    program = export(backbone, (x, edge_index, edge_weight), dynamic_shapes=(open_x, *open_edges))
    check(backbone, program, (more, more_index, more_weight))
    cell = hiermt.TGCNCell(FEATURES, HIDDEN).eval()
    h = torch.randn(12, HIDDEN)
    shapes = (open_x, *open_edges, {0: nodes})
    program = export(cell, (x[:, 0], edge_index, edge_weight, h), dynamic_shapes=shapes)
    check(cell, program, (more[:, 0], more_index, more_weight, torch.randn(17, HIDDEN)))
    stack = hiermt.GAT(FEATURES, HIDDEN).eval()
    program = export(stack, (x, edge_index, edge_weight), dynamic_shapes=(open_x, *open_edges))
    check(stack, program, (more, more_index, more_weight))


class Loss(nn.Module):
    """The terms of a loss of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.criterion = hiermt.MultiTaskLoss(**options)

    def forward(self, signal: Tensor, direction: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.criterion.terms(signal, direction, labels, 1 - labels, labels == 1))


@pytest.mark.parametrize("options", [{}, {"signal_weight": [1.0, 3.0], "focal_gamma": 2.0}], ids=["plain", "options"])
def test_the_loss(backend: str, options: dict[str, Any]) -> None:
    loss, rows = Loss(backend=backend, **options), Dim("n")

    def args(count: int) -> tuple[Tensor, ...]:
        return torch.randn(count, 2), torch.randn(count, 2), torch.arange(count) % 2

    program = export(loss, args(20), dynamic_shapes=({0: rows}, {0: rows}, {0: rows}))
    check(loss, program, args(33))


def test_a_graph_may_still_pass_32_bits() -> None:
    with pytest.raises(ValueError, match="32-bit"):
        hiermt.Graph(torch.zeros(2, 0, dtype=torch.long), None, 2**31)


MODULES: dict[str, Callable[[str], nn.Module]] = {
    "model": lambda backend: hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN, backend=backend),
    "GCN": lambda backend: hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN, use_gat=False, backend=backend),
    "backbone": lambda backend: hiermt.TGCN(FEATURES, 2, HIDDEN, backend=backend),
    "stack": lambda backend: hiermt.GAT(FEATURES, HIDDEN, backend=backend),
    "within": lambda backend: Within(hiermt.TGCN(FEATURES, 2, HIDDEN, backend=backend)),
}


class Within(nn.Module):
    """A user's module around one of ours."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        return self.part(x, edge_index, edge_weight)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_jit_is_refused(backend: str, name: str) -> None:
    module, args = MODULES[name](backend).eval(), problem(12, 6, 40)
    expected = module(*args)
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace .*torch\.export"):
        torch.jit.trace(module, args)
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.script .*torch\.export"):
        torch.jit.script(module)
    torch.testing.assert_close(module(*args), expected)
    graph = hiermt.Graph(*args[1:], 12)
    module.requires_grad_(False)  # torch itself refuses to keep others as constants
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace .*torch\.export"):
        torch.jit.trace(lambda x: module(x, graph, None), args[0])


@pytest.mark.filterwarnings("ignore")
def test_jit_is_refused_for_parts_and_functions(backend: str) -> None:
    cell, (x, edge_index, edge_weight) = hiermt.TGCNCell(FEATURES, HIDDEN, backend=backend), problem(12, 6, 40)
    refused = pytest.raises(NotImplementedError, match=r"torch\.jit\.trace .*torch\.export")
    with refused:
        torch.jit.trace(cell, (x[:, 0], edge_index, edge_weight))
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.script"):
        torch.jit.script(cell)
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.script"):
        torch.jit.script(hiermt.MultiTaskLoss())
    labels, logits = torch.arange(12) % 2, torch.randn(12, 2)
    with refused:
        torch.jit.trace(lambda a: functional.multitask_loss(a, a, labels, labels, backend=backend)[0], logits)
    with refused:
        torch.jit.trace(Loss(backend=backend), (logits, logits, labels))
    with refused:
        torch.jit.trace(lambda a: functional.gather_windows(a, torch.tensor([0, 1]), 3, backend=backend), x)
    gates = [gate.detach() for gate in cell.gates()]
    with refused:
        torch.jit.trace(lambda a: functional.gated_scan(a, a.new_zeros(12, 6, 5), None, gates, backend=backend), x)
    graph = hiermt.Graph(edge_index, edge_weight, 12)
    convs = [param.detach() for param in cell.gcn.op_parameters()]
    with refused:
        torch.jit.trace(lambda a: functional.tgcn_layer(a, graph, convs, gates, backend=backend), x)
