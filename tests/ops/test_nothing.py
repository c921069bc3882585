"""The gradient of a sum over nothing is zero, whatever the factors of that sum would be."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt import functional
from support.calls import prepare
from support.edge_numbers import Place, run
from support.problems import VARIANTS, Problem, problems

# Windows of none are a batch of no copy before they reach an operator.
OPERATORS = [make for name, make in VARIANTS.items() if "windows" not in name and make(1).gradient]
NUMBERS = (math.nan, math.inf)


def _empty_problems() -> Iterator[Problem]:
    yield from (make(0) for make in OPERATORS)
    for problem in problems():
        if problem.gradient and not problem.arguments[0].numel() and problem.arguments[0].size(-1):
            yield problem


@pytest.mark.hostile("empty", "special-numbers")
@pytest.mark.parametrize("problem", list(_empty_problems()), ids=str)
def test_no_operator_makes_a_gradient_of_nothing(problem: Problem, backend: str) -> None:
    for leaf, tensor in enumerate(prepare(problem).leaves):
        for number in NUMBERS if tensor.numel() else ():
            leaves = len(prepare(problem).leaves)
            for i, found in enumerate(
                run(problem, Place(leaf, tensor.numel() // 2), number, backend == "native")[-leaves:]
            ):
                # A state goes through where there is no step, with its cotangent.
                if found is not None and tensor.shape != found.shape:
                    assert not found.any(), f"{number} in argument {leaf}: gradient of {i}"


EDGES = torch.tensor([[0, 1, 1], [1, 0, 1]])


def _leaves(gat: bool, number: float) -> dict[str, Tensor]:
    """A layer of 2 features and 3 channels whose every parameter has a number like that, but for the gates."""
    sizes = {"lin_l": (3, 2), "l_bias": (3,), "lin_r": (3, 2), "r_bias": (3,), "att": (1, 1, 3), "bias": (3,)}
    sizes = {**sizes, "lin_edge": (3, 1)} if gat else {"lin": (3, 2), "bias": (3,)}
    made = {name: torch.full(size, number) for name, size in sizes.items()}
    made |= {f"{gate}{kind}": torch.full((3, 8) if kind else (3,), number) for gate in "urc" for kind in (1, 0)}
    return {name: one.requires_grad_() for name, one in made.items()}


@pytest.mark.hostile("empty", "edge-weight")
@pytest.mark.parametrize("number", [0.0, *NUMBERS])
@pytest.mark.parametrize("gat", [True, False])
@pytest.mark.parametrize("form", ["no copy", "no step", "no window"])
def test_weights_of_edges_that_nothing_reads(form: str, gat: bool, number: float, backend: str) -> None:
    """The root of a degree of 0 has no derivative, and the mean of NaN is NaN: neither is multiplied by nothing."""
    weight = torch.full((3,), number, requires_grad=True)
    graph = hiermt.Graph(EDGES, weight, 2, backend=backend)
    leaves = _leaves(gat, number)
    convs, gates = [one for name, one in leaves.items() if name[1:] not in "10"], list(leaves.values())[-6:]
    shape = {"no copy": (0, 4, 2), "no step": (2, 0, 2), "no window": (2, 4, 2)}[form]
    x = torch.full(shape, number, requires_grad=True)
    given = hiermt.windows.Windows(x, torch.zeros(0, dtype=torch.int64), 3) if form == "no window" else x
    options = {"conv_layers": 1, "gat": gat, "backend": backend}
    y = functional.tgcn_layer(given, graph, convs, gates, sequence=False, **options)
    assert y.shape == ((2, 3) if form == "no step" else (0, 3))
    # Of no step the twin's result hangs on no leaf.
    for name, leaf in {"x": x, "edge_weight": weight, **leaves}.items() if y.requires_grad else ():
        (found,) = torch.autograd.grad(y.sum(), leaf, allow_unused=True, retain_graph=True)
        assert found is None or not found.any(), name


@pytest.mark.hostile("empty")
@pytest.mark.parametrize("sequence", [True, False])
def test_a_scan_of_no_window(sequence: bool, backend: str) -> None:
    leaves = [torch.full(size, math.nan, requires_grad=True) for size in ((2, 5, 2), (2, 5, 3))]
    gates = [torch.full((3, 8) if i % 2 == 0 else (3,), math.inf, requires_grad=True) for i in range(6)]
    call = functional.gated_scan_windows
    y = call(*leaves, torch.zeros(0, dtype=torch.int64), 4, gates, sequence=sequence, backend=backend)
    assert y.shape == ((0, 4, 3) if sequence else (0, 3))
    assert not any(bool(one.any()) for one in torch.autograd.grad(y.sum(), [*leaves, *gates]))


@pytest.mark.hostile("empty", "edge-weight")
def test_no_copy_of_a_graph_is_pygs_batch_of_none(backend: str) -> None:
    """PyG batches graphs as a union, which of none has no edge."""
    gcn = pytest.importorskip("torch_geometric.nn").GCNConv
    conv = gcn(2, 3)
    weight = torch.zeros(3, requires_grad=True)
    none = torch.zeros(2, 0, dtype=torch.int64), weight[:0]
    (expected,) = torch.autograd.grad(conv(torch.zeros(0, 2), *none).sum(), weight)
    model: nn.Module = hiermt.A3TGCN(2, 3, 4, use_gat=False, backend=backend)
    (found,) = torch.autograd.grad(model(torch.zeros(0, 2, 3, 2), EDGES, weight).sum(), weight)
    assert torch.equal(found, expected)
