"""Windows that share their days on a GPU: against the float64 twin, captured, and with starts that make no sense."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import Windows, functional
from hiermt import windows as gather
from hiermt.graph import Graph
from hiermt.native import extension
from hiermt.testing import assert_close, stock_graph

REASON = "needs a GPU" if not torch.cuda.is_available() else extension.why_not_native("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.usefixtures("cuda_stream"),
]
STOCKS, DAYS, STEPS = 40, 30, 7
VARIANTS = [(16, True), (8, True), (16, False), (64, True), (20, False)]


def problem(hidden: int, use_gat: bool, dtype: torch.dtype) -> tuple[hiermt.TGCN_HierarchicalMT, Windows, Graph]:
    torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(13, hidden, 2, use_gat).to("cuda", dtype)
    edges, weights = stock_graph(STOCKS, 200)
    series = torch.randn(STOCKS, DAYS, 13).to("cuda", dtype)
    starts = torch.tensor([3, 9, 0, 23, 4, 4, 11], device="cuda")
    return model, Windows(series, starts, STEPS), Graph(edges.cuda(), weights.to("cuda", dtype), STOCKS)


def gradients(model: hiermt.TGCN_HierarchicalMT, x: Windows | Tensor, graph: Graph) -> list[Tensor]:
    """The logits, then the gradient of every parameter."""
    logits = torch.cat([one.reshape(-1, 2) for one in model(x, graph)], dim=1)
    factors = torch.linspace(-1, 1, logits.numel(), device="cuda", dtype=logits.dtype).reshape_as(logits)
    return [logits, *torch.autograd.grad((logits * factors).sum(), list(model.parameters()))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("hidden", "use_gat"), VARIANTS)
def test_model_and_gradients_match_the_float64_twin(hidden: int, use_gat: bool, dtype: torch.dtype) -> None:
    model, windows, graph = problem(hidden, use_gat, dtype)
    model.backend = "native"  # type: ignore[assignment]
    found = gradients(model, windows, graph)
    twin = hiermt.TGCN_HierarchicalMT(13, hidden, 2, use_gat)
    twin.load_state_dict(model.state_dict())
    twin.double().cuda().backend = "reference"  # type: ignore[assignment]
    assert graph.edge_weight is not None
    exact_graph = Graph(graph.edge_index, graph.edge_weight.double(), STOCKS)
    expected = gradients(twin, windows.gather().double(), exact_graph)
    assert_close(found[0], expected[0])
    for grad, truth in zip(found[1:], expected[1:], strict=True):
        assert_close(grad, truth, gradient=True, scaled=True)


def test_twenty_runs_give_the_same_bits() -> None:
    first = gradients(*problem(16, True, torch.float32))
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(gradients(*problem(16, True, torch.float32)), first, strict=True))


def test_captured_with_other_windows() -> None:
    model, windows, graph = problem(16, True, torch.float32)
    day_span = gather.DayRange(0, DAYS, DAYS - 3)

    def step() -> list[Tensor]:
        return gradients(model, windows.within(day_span), graph)

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        found = step()
    for starts in ([1, 2, 3, 4, 5, 6, 20], [19, 9, 2, 2, 2, 3, 7]):
        windows.starts.copy_(torch.tensor(starts, device="cuda"))
        captured.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, step(), strict=True))


@pytest.mark.parametrize("start", [-1, DAYS, 2**40, -(2**63)])
def test_no_start_leads_out_of_the_series(start: int) -> None:
    model, windows, graph = problem(16, True, torch.float32)
    expected = gradients(model, windows, graph)
    windows.starts[2] = start
    gradients(model, windows, graph)
    torch.cuda.synchronize()
    windows.starts[2] = 0
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, windows, graph), expected, strict=True))


def test_the_scan_alone() -> None:
    x, g = torch.randn(5, 20, 3, device="cuda"), torch.rand(5, 20, 16, device="cuda", requires_grad=True)
    gates = [
        torch.randn(16, 35, device="cuda") * 0.2 if i % 2 == 0 else torch.randn(16, device="cuda") for i in range(6)
    ]
    starts = torch.tensor([3, 0, 13], device="cuda")
    found = {}
    for backend in ("native", "reference"):
        out = functional.gated_scan_windows(x, g, starts, 7, gates, backend=backend)
        found[backend] = out, *torch.autograd.grad(out.sum(), [g])
    for one, other in zip(*found.values(), strict=True):
        assert_close(one, other, gradient=True)
