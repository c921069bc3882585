"""The operators with stocks that come and go, against PyG on the subgraph of those that are there, day by day."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import functional
from hiermt.testing import assert_close, batched
from support import present as oracle
from support.present_layer import BACKENDS, FEATURES, HIDDEN, STEPS, STOCKS, Layer, gradients, layer

KINDS = ("edge", "bare", "gcn")
needs_native = pytest.mark.skipif("native" not in BACKENDS, reason="needs the native library")


def check(problem: Layer, y: Tensor, truth: Tensor, leaves: list[Tensor], exact: list[Tensor]) -> None:
    """Values and gradients of `leaves` against those of `exact`, the same leaves in float64."""
    dtype = y.dtype
    assert_close(y.double(), truth, dtype=dtype)
    got, want = gradients(y, leaves), gradients(truth, exact)
    assert not got[0][~problem.present].any()
    for i, (one, other) in enumerate(zip(got, want, strict=True)):
        assert_close(one.double(), other, dtype=dtype, gradient=True, scaled=True, message=f"gradient {i}")


CASES = [(1, True, 1), (1, False, 2), (2, True, 2), (2, False, 1)]


@pytest.mark.hostile("absent", "loops", "edge-weight")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("conv_layers", "between", "copies"), CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_pyg_day_by_day(kind: str, conv_layers: int, between: bool, copies: int, backend: str) -> None:
    problem = layer(kind, conv_layers, between, copies)
    check(problem, problem.run(backend), problem.expected(), problem.leaves, problem.leaves)


@pytest.mark.hostile("absent", "empty")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", ["listed late", "a day of nobody", "nobody", "one"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks(kind: str, mask: str, backend: str) -> None:
    problem = layer(kind, mask=mask)
    y = problem.run(backend)
    check(problem, y, problem.expected(), problem.leaves, problem.leaves)
    never = ~problem.present.any(dim=1)
    assert torch.equal(y[never], problem.h0[never].unsqueeze(1).expand_as(y[never]))


@pytest.mark.hostile("absent", "edge-weight")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", ["edge", "gcn"])
def test_weights_of_an_absent_node_are_not_read(kind: str, value: float, backend: str) -> None:
    """As a correlation with a stock that is not listed yet, which has none."""
    problem = layer(kind)
    never = ~problem.present.any(dim=1)
    with torch.no_grad():
        problem.weight[never[problem.edge_index].any(dim=0)] = value
    assert never.any() and not problem.weight.isfinite().all()
    check(problem, problem.run(backend), problem.expected(), problem.leaves, problem.leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hidden", [4, 16, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_float32(kind: str, hidden: int, backend: str) -> None:
    exact = layer(kind, copies=3, hidden=hidden).with_leaves(torch.float32).with_leaves(torch.float64)
    problem = exact.with_leaves(torch.float32)
    check(problem, problem.run(backend), exact.expected(), problem.leaves, exact.leaves)


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind: str) -> None:
    """No worse than twice the twin in bfloat16, both against float64."""
    exact = layer(kind, conv_layers=1, copies=2).with_leaves(torch.bfloat16).with_leaves(torch.float64)
    problem = exact.with_leaves(torch.bfloat16)
    results = {name: problem.run(name) for name in BACKENDS}
    truth = exact.expected()
    errors = {name: (y.double() - truth).norm() for name, y in results.items()}
    assert errors["native"] <= 2 * errors["reference"]
    wanted = gradients(truth, exact.leaves)
    found = {name: gradients(y, problem.leaves) for name, y in results.items()}
    for i, want in enumerate(wanted):
        native, twin = ((found[name][i].double() - want).norm() for name in ("native", "reference"))
        assert native <= 2 * twin + 0.02 * want.norm(), f"gradient {i}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_a_series(kind: str, backend: str) -> None:
    problem = layer(kind)
    starts, steps = torch.tensor([2, 0, 3, 2, 1]), 4
    windows = hiermt.windows.Windows(problem.x, starts, steps, problem.present)
    h0 = torch.randn(5 * STOCKS, HIDDEN, dtype=torch.float64, requires_grad=True)
    y = functional.tgcn_layer(
        windows, problem.graph, problem.convs, problem.gates, h0=h0, **problem.options, backend=backend
    )
    x = torch.cat([problem.x[:, start : start + steps] for start in starts.tolist()])
    present = torch.cat([problem.present[:, start : start + steps] for start in starts.tolist()])
    leaves = [problem.x, h0, *problem.leaves[2:]]
    check(problem, y, problem.expected(x, present, h0), leaves, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["none", "leaky_relu", "sigmoid"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_stack_are_zero_where_a_node_is_absent(kind: str, activation: str, backend: str) -> None:
    """Whatever their cotangents are."""
    problem = layer(kind, copies=2)
    y = functional.conv_stack(
        problem.x,
        problem.graph,
        problem.convs,
        conv_layers=2,
        gat=kind != "gcn",
        edge=kind == "edge",
        activation=activation,
        present=problem.present,
        backend=backend,
    )
    assert not y[~problem.present].any()
    act = {
        "none": lambda v: v,
        "leaky_relu": lambda v: torch.nn.functional.leaky_relu(v, 0.01),
        "sigmoid": torch.sigmoid,
    }
    rows, edges = [], batched(problem.edge_index, problem.weight, STOCKS, 2)
    for t in range(STEPS):
        there = problem.present[:, t].nonzero()[:, 0]
        graph = oracle.subgraph(edges, there, 2 * STOCKS)
        day = act[activation](oracle.stack_of_day(problem.x[there, t], graph, problem.convs, 2, True))
        rows.append(torch.zeros(2 * STOCKS, HIDDEN, dtype=day.dtype).index_copy(0, there, day))
    leaves = [problem.x, *problem.convs, *problem.leaves[len(problem.leaves) - (problem.weight is not None) :]]
    check(problem, y, torch.stack(rows, 1), leaves, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_there_is_no_mask(backend: str) -> None:
    """Bitwise for a GATv2 without edge term; the others sum the weights of an entry in another order."""
    for kind in KINDS:
        problem = layer(kind, mask="random")
        problem = problem._replace(x=problem.x.nan_to_num(0.5, 0.5, 0.5).detach().requires_grad_())
        everybody = torch.ones_like(problem.present)
        with_mask, without = (problem.run(backend, present=mask) for mask in (everybody, None))
        pairs = zip(gradients(with_mask, problem.leaves), gradients(without, problem.leaves), strict=True)
        pairs = [(with_mask, without), *pairs]
        for one, other in pairs:
            assert_close(one, other, gradient=True, scaled=True)
            assert kind != "bare" or backend == "reference" or torch.equal(one, other)


@pytest.mark.hostile("absent", "strides")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_strides_of_the_mask(kind: str, backend: str) -> None:
    problem = layer(kind)
    of_days = torch.rand(STEPS) < 0.6
    for mask in (
        problem.present.t().contiguous().t(),
        of_days.expand(STOCKS, STEPS),
        problem.present[:, :1].expand(-1, STEPS),
    ):
        x = problem.x.nan_to_num(0.5, 0.5, 0.5)
        one, other = (problem._replace(x=x).run(backend, present=m) for m in (mask, mask.contiguous()))
        assert torch.equal(one, other)


@pytest.mark.hostile("absent", "special-numbers")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e20, 1e36])
def test_scores_that_are_extremely_negative(scale: float, backend: str) -> None:
    """Near the lowest number of float32, where that of an absent source must still be lower."""
    problem = layer("edge", conv_layers=1).with_leaves(torch.float32)
    convs = list(problem.convs)
    convs[4] = torch.full((1, 1, HIDDEN), -scale)
    convs[0] = convs[0].abs()
    x = problem.x.abs() + 0.1
    found = problem._replace(x=x, convs=convs)
    assert_close(found.run(backend), found.expected(), dtype=torch.float32)


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_differences(kind: str) -> None:
    problem = layer(kind, conv_layers=1, hidden=3)
    x = problem.x.detach().nan_to_num(0.5, 0.5, 0.5).requires_grad_()
    weight = [] if problem.weight is None else [problem.weight]

    def run(*leaves: Tensor) -> Tensor:
        convs = len(problem.convs)
        some = Layer(
            leaves[0],
            leaves[1],
            problem.edge_index,
            leaves[-1] if weight else None,
            list(leaves[2 : 2 + convs]),
            problem.gates,
            problem.present,
            problem.options,
        )
        return some.run("native")

    assert torch.autograd.gradcheck(run, (x, problem.h0, *problem.convs, *weight), fast_mode=True)


@pytest.mark.hostile("absent", "determinism")
@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_threads(kind: str) -> None:
    problem = layer(kind, copies=9, hidden=16).with_leaves(torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = problem.run("native")
            results.append([y, *gradients(y, problem.leaves)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@needs_native
@pytest.mark.parametrize("kind", ["edge", "gcn"])
def test_opcheck(kind: str) -> None:
    from hiermt.ops.operator import allows_tf32

    problem = layer(kind, conv_layers=1).with_leaves(torch.float32)
    x = problem.x.detach().nan_to_num(0.5, 0.5, 0.5).requires_grad_()
    csr = problem.graph.csr(int(kind == "gcn"), True, torch.float32, whole=True, normalized=False)
    assert csr.weight is not None
    weight, present, tf32 = csr.weight.detach(), problem.present, allows_tf32(x)
    ops = torch.ops.hiermt
    options = {"conv_layers": 1, "activation": 2, "tf32": tf32}
    args = (x, csr.tensors, weight, problem.convs, present)
    torch.library.opcheck(ops.conv_stack.default, args, options)
    scan = {"steps": 0, "sequence": True, "save": True, "tf32": tf32}
    g = torch.rand(STOCKS, STEPS, HIDDEN, requires_grad=True)
    torch.library.opcheck(ops.gated_scan.default, (x, g, problem.h0, problem.gates, None, present), scan)
    args = (x, csr.tensors, weight, problem.convs, problem.gates, problem.h0, None, present)
    torch.library.opcheck(ops.tgcn_layer.default, args, {**scan, "conv_layers": 1, "between": True})


@pytest.mark.hostile("absent", "compilers")
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_break(backend: str) -> None:
    torch.manual_seed(0)
    model = hiermt.TGCN(FEATURES, 2, 4, 1, layout="NTF", backend=backend)
    problem = layer("edge")

    def run(x: Tensor, present: Tensor) -> Any:
        return model(x, problem.edge_index, problem.weight.detach().float(), present=present)

    x = problem.x.detach().float()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, problem.present), run(x, problem.present), dtype=torch.float32)


def test_vmap_over_masks() -> None:
    problem = layer("edge")
    masks = torch.stack([problem.present, torch.ones_like(problem.present)])
    x, weight = problem.x.detach().nan_to_num(0.5, 0.5, 0.5), problem.weight.detach()
    graph = hiermt.Graph(problem.edge_index, weight, STOCKS)

    def run(mask: Tensor) -> Tensor:
        return functional.tgcn_layer(x, graph, problem.convs, problem.gates, present=mask)

    with torch.no_grad():
        found = torch.func.vmap(run)(masks)
        for one, mask in zip(found, masks, strict=True):
            assert_close(one, run(mask))


@pytest.mark.hostile("absent")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_alone_equal_pyg_day_by_day(kind: str, backend: str) -> None:
    own = layer(kind, conv_layers=2)
    options = {key: value for key, value in own.options.items() if key != "sequence"}
    given = {"present": own.present, "backend": backend, "activation": "none"}
    found = functional.conv_stack(own.x, own.graph, own.convs, **options, **given)
    edges = own.edge_index, own.weight
    for t in range(STEPS):
        there = own.present[:, t].nonzero()[:, 0]
        if not len(there):
            continue
        graph = oracle.subgraph(edges, there, STOCKS)
        expected = oracle.stack_of_day(own.x[there, t], graph, own.convs, 2, True)
        assert_close(found[there, t], expected, message=f"day {t}")
    assert not found[~own.present].any()
