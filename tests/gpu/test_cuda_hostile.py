"""Hostile input on a GPU: the same numbers as the twin or a clear error, and a context that survives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt import functional
from hiermt.graph import Graph
from hiermt.native import extension
from hiermt.testing import assert_close, stock_graph
from support import far
from support.calls import compare

DEVICE = "cuda"
REASON = "needs a GPU" if not torch.cuda.is_available() else extension.why_not_native("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.usefixtures("cuda_stream"),
]
NODES, STEPS, FEATURES = 20, 6, 5
# One launch for a layer's stack and one each, GATv2 and GCN.
VARIANTS = [(16, True), (20, True), (8, False), (20, False)]


@pytest.fixture(autouse=True)
def context() -> Iterator[None]:
    """After every test the device still computes."""
    yield
    assert float(torch.ones(3, device=DEVICE).sum()) == 3


def make(hidden: int, use_gat: bool) -> tuple[nn.Module, nn.Module, Tensor, Tensor, Tensor]:
    """The model, its float64 twin, x, edges and weights."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(hiermt.TGCN_HierarchicalMT(FEATURES, hidden, 2, use_gat).to(DEVICE))
    models[0].backend, models[1].backend = "native", "reference"  # type: ignore[assignment]
    edge_index, edge_weight = stock_graph(NODES, 60, isolated=2)
    x = torch.randn(NODES, STEPS, FEATURES)
    return models[0], models[1].double(), x.to(DEVICE), edge_index.to(DEVICE), edge_weight.to(DEVICE)


def same(model: nn.Module, twin: nn.Module, x: Tensor, edges: Tensor, weights: Tensor | None) -> None:
    """Values and gradients of both, NaN where the twin has NaN."""
    found = model(x, edges, weights)
    expected = twin(x.double(), edges, None if weights is None else weights.double())
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert_close(one, other)
    if not all(one.isfinite().all() for one in expected):
        return
    grads = torch.autograd.grad(sum(one.sum() for one in found), list(model.parameters()))
    truth = torch.autograd.grad(sum(one.sum() for one in expected), list(twin.parameters()))
    for grad, exact in zip(grads, truth, strict=True):
        assert_close(grad, exact, gradient=True, scaled=True)


@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_bad_numbers_in_x(variant: tuple[int, bool], value: float) -> None:
    model, twin, x, edges, weights = make(*variant)
    x[3, 2, 1] = value
    same(model, twin, x, edges, weights)


@pytest.mark.hostile("edge-weight")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_bad_edge_weights(variant: tuple[int, bool], value: float) -> None:
    model, twin, x, edges, weights = make(*variant)
    weights[7] = value
    same(model, twin, x, edges, weights)


@pytest.mark.hostile("special-numbers")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_saturated_gates(variant: tuple[int, bool]) -> None:
    model, twin, x, edges, weights = make(*variant)
    with torch.no_grad():
        for one in (model, twin):
            for name, param in one.named_parameters():
                if name.endswith(("lin_u.bias", "lin_r.bias", "lin_c.bias")):
                    param[::3], param[1::3] = 200, -200
    same(model, twin, x, edges, weights)


@pytest.mark.hostile("loops", "empty")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_loops_duplicates_and_no_edges(variant: tuple[int, bool]) -> None:
    model, twin, x, edges, weights = make(*variant)
    more = torch.tensor([[0, 4, 4], [0, 4, 9]], device=DEVICE)
    same(model, twin, x, torch.cat([edges, more, more], 1), torch.cat([weights, weights[:6]]))
    same(model, twin, x, torch.cat([edges, more, more], 1).int(), torch.cat([weights, weights[:6]]))
    same(model, twin, x, edges[:, :0], weights[:0])


@pytest.mark.hostile("strides")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_tensors_that_are_aligned_to_an_element_only(variant: tuple[int, bool]) -> None:
    model, twin, x, edges, weights = make(*variant)
    expected = [one.detach() for one in model(x, edges, weights)]

    def shifted(tensor: Tensor) -> Tensor:
        whole = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
        whole[1:] = tensor.detach().flatten()
        return whole[1:].view(tensor.shape)

    for param in model.parameters():
        param.data = shifted(param)
    assert next(model.parameters()).data_ptr() % 16 != 0
    for one, other in zip(model(shifted(x), edges, shifted(weights)), expected, strict=True):
        assert torch.equal(one, other)
    same(model, twin, shifted(x), edges, shifted(weights))
    params = model._head_params()  # type: ignore[operator]
    h = torch.randn(33, variant[0], device=DEVICE)
    for one, other in zip(functional.decision(shifted(h), params), functional.decision(h, params), strict=True):
        assert torch.equal(one, other)


@pytest.mark.hostile("empty")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_steps(variant: tuple[int, bool]) -> None:
    model, twin, x, edges, weights = make(*variant)
    for one, other in zip(
        model(x[:, :0], edges, weights), twin(x[:, :0].double(), edges, weights.double()), strict=True
    ):
        assert_close(one, other)


@pytest.mark.hostile("large-index")
def test_more_rows_than_can_be_counted() -> None:
    nodes = 1 << 16
    model = hiermt.TGCN_HierarchicalMT(1, 8, 1, backend="native").to(DEVICE)
    graph = Graph(torch.tensor([[0], [1]], device=DEVICE), torch.ones(1, device=DEVICE), nodes)
    x = torch.zeros(1, 1, 1, device=DEVICE).expand(nodes, 1 << 15, 1)
    with pytest.raises(RuntimeError, match="split the batch"):
        model(x, graph)


@pytest.mark.hostile("large-index")
def test_offsets_past_32_bits() -> None:
    """A stack at once, a scan, the heads, one after the other: each takes up to 13 GB."""
    if torch.cuda.mem_get_info()[0] < 2**34:
        pytest.skip("needs 16 GB of free memory")
    listed = far.problems()
    for op, axis in (("tgcn_layer", "copies"), ("gated_scan", "N"), ("decision", "N")):
        one = next(one for one in listed if one.problem.op == op and str(one).endswith(axis))
        with far.memory_file() as path:
            compare(one.problem, torch.bfloat16, DEVICE, layout=one.layout(path))
        torch.cuda.empty_cache()


def test_more_channels_than_a_warp_shares() -> None:
    model = hiermt.TGCN_HierarchicalMT(FEATURES, 300, 1, backend="native").to(DEVICE)
    edges, weights = stock_graph(NODES, 60, isolated=2)
    with pytest.raises(RuntimeError, match="hidden channels"):
        model(torch.randn(NODES, STEPS, FEATURES, device=DEVICE), edges.to(DEVICE), weights.to(DEVICE))


def test_a_refused_launch_leaves_no_error_behind() -> None:
    def decide(hidden: int) -> Tensor:
        shapes = ((4, hidden), (4,), (2, 4), (2,), (2, 4), (2,))
        params = [torch.zeros(*shape, device=DEVICE) for shape in shapes]
        return functional.decision(torch.zeros(3, hidden, device=DEVICE), params, backend="native")[3]

    with pytest.raises(RuntimeError, match="hiermt::decision"):
        decide(20_000)  # the folded heads take more shared memory than there is
    assert torch.equal(decide(16), torch.ones(3, dtype=torch.int64, device=DEVICE))


@pytest.mark.hostile("memory")
@pytest.mark.parametrize("training", [False, True])
def test_out_of_memory_is_torch_s_own_exception_and_the_next_call_works(training: bool) -> None:
    model, _, x, edges, weights = make(16, True)
    expected = model(x, edges, weights)[0]
    long = torch.randn(NODES, 1, FEATURES, device=DEVICE).expand(NODES, 4_000_000, FEATURES)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with torch.set_grad_enabled(training), pytest.raises(torch.OutOfMemoryError, match=r"bytes .* on cuda:0 for"):
            model(long, edges, weights)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.equal(model(x, edges, weights)[0], expected)


@pytest.mark.hostile("double-backward")
def test_no_second_derivative() -> None:
    model, _, x, edges, weights = make(16, True)
    (grad,) = torch.autograd.grad(model(x.requires_grad_(), edges, weights)[0].sum(), [x], create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError)):
        grad.sum().backward()


@pytest.mark.hostile("stale-graph")
def test_edges_changed_in_place() -> None:
    model, twin, x, edges, weights = make(16, True)
    same(model, twin, x, edges, weights)
    edges[:, :4] = torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]], device=DEVICE)
    same(model, twin, x, edges, weights)


def test_the_current_device_stays() -> None:
    model, _, x, edges, weights = make(16, True)
    before = torch.cuda.current_device(), torch.cuda.current_stream()
    model(x, edges, weights)[0].sum().backward()
    assert (torch.cuda.current_device(), torch.cuda.current_stream()) == before
