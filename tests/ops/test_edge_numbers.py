"""Infinite, NaN, huge and subnormal numbers go through the operators as through PyTorch and PyG."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import functional, testing
from hiermt.native import extension
from support.calls import outputs_of, prepare
from support.edge_numbers import pattern, places, run
from support.problems import Maker, Problem, Stack

needs_native = pytest.mark.skipif(not extension.native_status().available, reason="needs the extension")
SIZES = ((5, 3, 1), (8, 5, 5), (16, 3, 17), (37, 3, 1), (64, 5, 2))


def small_problems() -> Iterator[Problem]:
    """Small calls of every differentiable operator, at widths with and without a kernel of their own."""
    make = Maker()
    edge_index, weight = testing.stock_graph(7, 28, 2)
    loop_and_duplicate = torch.tensor([[0, 1], [0, edge_index[1, 0]]])
    edges = torch.cat([edge_index, loop_and_duplicate, edge_index[:, :1]], dim=1), torch.cat([weight, weight[:3]]), 7
    for gat in (True, False):
        for i, (hidden, channels, steps) in enumerate(SIZES):
            yield make.conv(edges, (1, steps, channels, hidden), Stack(1, gat), i % 3)
            if gat:
                yield make.conv(edges, (1, steps, channels, hidden), Stack(1, gat, False), i % 3)
            stack, shape = Stack(1 + i % 2, gat, gat, i < 3), (2, steps, channels, hidden)
            yield make.layer(edges, shape, stack, i % 2 == 0)
            # Every day is one of a window: no kernel reads the others.
            yield make.layer(edges, (1, steps + 1, channels, hidden), stack, i % 2 == 0, [1, 0, 1], steps)
    for hidden, channels, steps in SIZES:
        yield make.scan((9, steps, channels, hidden), True, hidden != 16)
    yield from (make.heads(*size) for size in ((3, 5, 4), (37, 8, 8), (5, 37, 5), (70, 16, 16)))


@pytest.mark.hostile("special-numbers")
@needs_native
@pytest.mark.parametrize("problem", list(small_problems()), ids=str)
def test_one_number_goes_through_as_in_the_twin(problem: Problem) -> None:
    for place, name, number in places(problem):
        if "1e30" in name and "-gat" in problem.label:
            continue  # sums of products of such numbers overflow or cancel with the order of their terms
        native, twin = (run(problem, place, number, one) for one in (True, False))
        for i, (found, expected) in enumerate(zip(native, twin, strict=True)):
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                assert torch.equal(pattern(found), pattern(expected)), f"{name} in {place}: result {i}"
            if i == 0 and not math.isfinite(number):
                testing.assert_close(found, expected, message=f"{name} in {place}")


@pytest.mark.hostile("special-numbers")
@needs_native
def test_a_source_at_minus_infinity_gets_no_attention() -> None:
    """Its score is -inf where att is positive: out of the softmax, although 0.6 z + 0.4 |z| would be NaN."""
    problem = Maker().conv("stock", (1, 3, 1, 2), Stack(1, edge=False), 0)
    x, _, _, params = problem.arguments
    params[0].copy_(torch.tensor([[1.0], [0.0]]))
    params[4].fill_(0.5)
    x[4, 1], params[1][0] = -3e38, -3e38
    (found,), (expected,) = (outputs_of(problem.op, prepare(problem), native) for native in (True, False))
    assert expected[:, 1, 1].isfinite().any()
    assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("hidden", [5, 16, 37])
def test_a_convolution_with_such_a_bias_equals_pyg(hidden: int, number: float, backend: str) -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    edges = testing.stock_graph(13, 40)
    conv, x = nn.GCNConv(3, hidden), torch.randn(13, 3)
    for leaf in (conv.bias, conv.lin.weight):
        kept = leaf.detach().clone()
        with torch.no_grad():
            leaf.view(-1)[-1] = number
        expected = conv(x, *edges)
        found = functional.gcn_conv(x[:, None], hiermt.Graph(*edges, 13), conv.lin.weight, conv.bias, backend=backend)
        assert torch.equal(pattern(found[:, 0].detach()), pattern(expected.detach()))
        for ours, theirs in zip(
            torch.autograd.grad(found.sum(), [conv.lin.weight, conv.bias]),
            torch.autograd.grad(expected.sum(), [conv.lin.weight, conv.bias]),
            strict=True,
        ):
            assert torch.equal(pattern(ours), pattern(theirs))
        with torch.no_grad():
            leaf.copy_(kept)


@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), 1e30])
@pytest.mark.parametrize("unused", ["signal", "direction"])
@pytest.mark.parametrize("hidden", [5, 16, 37])
def test_a_head_that_is_not_used_reaches_no_gradient(unused: str, number: float, hidden: int, backend: str) -> None:
    h = torch.randn(9, hidden, requires_grad=True)
    out, heads = torch.nn.Linear(hidden, 6), [torch.nn.Linear(6, 2) for _ in range(2)]
    wrong = heads[0 if unused == "signal" else 1]
    with torch.no_grad():
        wrong.weight[1, 2] = number
    used = heads[1 if unused == "signal" else 0]
    params = [one for linear in (out, *heads) for one in (linear.weight, linear.bias)]
    logits = functional.heads(h, params, backend=backend)[1 if unused == "signal" else 0]
    wanted = [h, *out.parameters(), *used.parameters()]
    found = torch.autograd.grad(logits.square().sum(), wanted)
    expected = torch.autograd.grad(used(out(h)).square().sum(), wanted)
    for ours, theirs in zip(found, expected, strict=True):
        testing.assert_close(ours, theirs, gradient=True)
    logits = functional.heads(h, params, backend=backend)[1 if unused == "signal" else 0]
    assert torch.autograd.grad(logits.sum(), wrong.weight, allow_unused=True)[0] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gat", [True, False])
@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-7, 1e-12, 1e-20])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_slope_after_a_convolution_is_that_of_its_side(
    sign: float, size: float, gat: bool, dtype: torch.dtype, backend: str
) -> None:
    """Every activation is `sign` * `size`: its gradient passes with slope 1 or 0.01, whatever the sigmoid rounds to."""
    graph, hidden = hiermt.Graph(torch.tensor([[0, 1], [1, 0]]), None, 2), 5
    x = torch.zeros(2, 3, 4, dtype=dtype)
    shapes = [(hidden, 4), (hidden,), (hidden, 4), (hidden,), (hidden,), (hidden,)] if gat else [(hidden, 4), (hidden,)]
    convs = [torch.zeros(*shape, dtype=dtype) for shape in shapes]
    bias = convs[-1].fill_(sign * size).requires_grad_()
    torch.manual_seed(0)
    gates = [
        torch.randn(hidden, 4 + 2 * hidden, dtype=dtype) if i % 2 == 0 else torch.randn(hidden, dtype=dtype)
        for i in range(6)
    ]

    def gradient(to: torch.dtype, which: str) -> Tensor:
        leaf = bias.detach().to(to).requires_grad_()
        params = [*[conv.to(to) for conv in convs[:-1]], leaf]
        out = functional.tgcn_layer(
            x.to(to), graph, params, [gate.to(to) for gate in gates],
            conv_layers=1, gat=gat, edge=False, conv_activation="after", backend=which,
        )  # fmt: skip
        return torch.autograd.grad(out.sum(), leaf)[0].double()

    exact = gradient(torch.float64, "reference")
    found = gradient(dtype, backend)
    testing.assert_close(found, exact, gradient=True, dtype=dtype)


@pytest.mark.hostile("special-numbers")
@needs_native
@pytest.mark.parametrize("use_gat", [True, False])
@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_model_equals_pyg(number: float, use_gat: bool) -> None:
    pyg = pytest.importorskip("hiermt.testing.pyg")
    edges, x = testing.stock_graph(13, 40), torch.randn(13, 5, 3)
    model = hiermt.TGCN_HierarchicalMT(3, 8, use_gat=use_gat, backend="native")
    for name, leaf in model.named_parameters():
        kept = leaf.detach().clone()
        with torch.no_grad():
            leaf.view(-1)[0] = number
        for ours, expected in zip(model(x, *edges), pyg.like(model)(x, *edges), strict=True):
            assert torch.equal(pattern(ours.detach()), pattern(expected.detach())), name
        with torch.no_grad():
            leaf.copy_(kept)


@needs_native
@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("gat", [True, False])
def test_subnormal_numbers_are_those_of_the_twin(gat: bool, flushed: bool, threads: int) -> None:
    """Kept to the last bits, or, where the caller flushes them to zero, gone or below the normal numbers."""
    problem = Maker().conv("stock", (2, 3, 5, 16), Stack(1, gat), 0)
    x, _, _, params = problem.arguments
    x.mul_(1e-39)
    for bias in params[1::2] if not gat else [params[1], params[3], params[5]]:
        bias.zero_()
    before = torch.get_num_threads()
    if not torch.set_flush_denormal(flushed):
        pytest.skip("this processor flushes nothing")
    torch.set_num_threads(threads)
    try:
        (found,), (expected,) = (outputs_of(problem.op, prepare(problem), native) for native in (True, False))
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
    smallest = torch.finfo(torch.float32).tiny
    assert flushed or (0 < expected.abs().max() < smallest)
    assert (found.double() - expected.double()).abs().max() <= (smallest if flushed else 64 * 2.0**-149)
