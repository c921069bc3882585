"""What only a GPU can show: the whole model on CUDA against its float64 twin, streams, capture, compile, devices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt import reference
from hiermt.graph import Graph
from hiermt.native import extension
from hiermt.testing import assert_close, batched, stock_graph

REASON = "needs a GPU" if not torch.cuda.is_available() else extension.why_not_native("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.usefixtures("cuda_stream"),
]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# (hidden, use_gat, conv_layers, edge_dim, conv_activation): one launch for the stack, one each, weights in memory.
VARIANTS = [
    (16, True, 2, 1, "between"),
    (8, True, 1, None, "after"),
    (32, True, 2, 1, "between"),
    (16, False, 2, 1, "between"),
    (64, True, 2, 1, "between"),
    (20, True, 2, 1, "after"),
]


def problem(
    variant: tuple[int, bool, int, int | None, str], dtype: torch.dtype, copies: int = 2, device: str = "cuda"
) -> tuple[nn.Module, Tensor, Tensor, Tensor | None]:
    """Model, x, edges and weights on `device`."""
    hidden, use_gat, conv_layers, edge_dim, conv_activation = variant
    torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(
        13, hidden, 2, use_gat, conv_layers=conv_layers, edge_dim=edge_dim, conv_activation=conv_activation
    )
    edge_index, edge_weight = stock_graph(40, 200)
    edges, weights = batched(edge_index, edge_weight if edge_dim or not use_gat else None, 40, copies)
    x = torch.randn(40 * copies, 7, 13)
    weights = None if weights is None else weights.to(device, dtype)
    return model.to(device, dtype), x.to(device, dtype), edges.to(device), weights


def losses(model: nn.Module, x: Tensor, edges: Tensor | Graph, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both logits as one tensor, and a scalar that depends on all of them unevenly."""
    logits = torch.cat(model(x, edges, weights), dim=1)
    factors = torch.linspace(-1, 1, logits.numel(), device=x.device, dtype=logits.dtype).reshape_as(logits)
    return logits, (logits * factors).sum()


@pytest.mark.hostile("rounding", "dtypes")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_model_and_gradients_match_the_float64_twin(
    variant: tuple[int, bool, int, int | None, str], dtype: torch.dtype
) -> None:
    model, x, edges, weights = problem(variant, dtype)
    model.backend = "native"  # type: ignore[assignment]
    x.requires_grad_()
    logits, loss = losses(model, x, edges, weights)
    grads = torch.autograd.grad(loss, [x, *model.parameters()])

    twin = hiermt.TGCN_HierarchicalMT(
        13, variant[0], 2, variant[1], conv_layers=variant[2], edge_dim=variant[3], conv_activation=variant[4]
    )
    twin.load_state_dict(model.state_dict())
    twin.double().cuda()
    twin.backend = "reference"
    exact_x = x.detach().double().requires_grad_()
    exact, exact_loss = losses(twin, exact_x, edges, None if weights is None else weights.double())
    assert_close(logits, exact)
    expected = torch.autograd.grad(exact_loss, [exact_x, *twin.parameters()])
    for grad, truth in zip(grads, expected, strict=True):
        assert_close(grad, truth, gradient=True, scaled=True)


@pytest.mark.parametrize("variant", [VARIANTS[3], VARIANTS[4]], ids=str)
def test_tf32_only_when_torch_allows_it(variant: tuple[int, bool, int, int | None, str]) -> None:
    model, x, edges, weights = problem(variant, torch.float32)
    model.backend = "native"  # type: ignore[assignment]

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(losses(model, x, edges, weights)[1], list(model.parameters())))

    exact = gradients()
    torch.set_float32_matmul_precision("high")
    try:
        rounded = gradients()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert any(not torch.equal(a, b) for a, b in zip(exact, rounded, strict=True))
    for a, b in zip(exact, rounded, strict=True):
        # Sums over a softmax cancel: what is left of lin_r's gradient keeps 2 % of the rounding.
        assert float((a - b).norm()) <= 5e-2 * max(float(a.norm()), 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(exact, gradients(), strict=True))


def test_gradient_of_the_edge_weights() -> None:
    model, x, edges, weights = problem(VARIANTS[0], torch.float32)
    assert weights is not None
    found = {}
    for backend in ("native", "reference"):
        model.backend = backend  # type: ignore[assignment]
        leaf = weights.detach().clone().requires_grad_()
        (found[backend],) = torch.autograd.grad(losses(model, x, edges, leaf)[1], [leaf])
    assert_close(found["native"], found["reference"], gradient=True)


@pytest.mark.parametrize("rule", [reference.GATV2_RULE, reference.GCN_RULE])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_graph_prepare_on_the_device(rule: int, dtype: torch.dtype) -> None:
    edge_index = torch.randint(300, (2, 5000)).to(dtype)
    expected = reference.graph_prepare(edge_index, 300, rule)[:6]
    found = torch.ops.hiermt.graph_prepare(edge_index.cuda(), 300, rule)[:6]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("copies", [1, 3])
def test_the_nodes_of_a_template_by_degree(copies: int) -> None:
    edge_index, edge_weight = batched(*stock_graph(60, 200), 60, copies)
    assert edge_weight is not None
    csr = Graph(edge_index.cuda(), edge_weight.cuda(), 60 * copies).csr(reference.GATV2_RULE, True, torch.float32)
    assert sorted(csr.schedule.tolist()) == list(range(60))
    degrees = csr.rowptr.diff()[csr.schedule.long()]
    assert torch.equal(degrees, degrees.sort(descending=True).values)


@pytest.mark.hostile("determinism")
def test_twenty_runs_give_the_same_bits() -> None:
    model, x, edges, weights = problem(VARIANTS[0], torch.float32, copies=32)
    first: list[Tensor] = []
    for _ in range(20):
        logits, loss = losses(model, x, edges, weights)
        found = [logits, *torch.autograd.grad(loss, list(model.parameters()))]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))


@pytest.mark.parametrize("use_gat", [True, False])
def test_gradients_of_trained_weights_have_the_same_bits(use_gat: bool) -> None:
    model, x, edges, weights = problem((16, use_gat, 2, 1, "between"), torch.float32, copies=8)
    assert weights is not None
    leaf = weights.requires_grad_()
    first, *others = (torch.autograd.grad(losses(model, x, edges, leaf)[1], [leaf])[0] for _ in range(20))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.hostile("streams")
def test_captured_forward_reads_new_data() -> None:
    model, x, edges, weights = problem(VARIANTS[0], torch.float32)
    graph = Graph(edges, weights, x.size(0))
    model.eval()
    with torch.no_grad():
        for _ in range(3):
            model(x, graph)
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            out = model(x, graph)[0]
        x.copy_(torch.randn_like(x))
        captured.replay()
        assert torch.equal(out, model(x, graph)[0])


def test_captured_training_step_learns_as_the_eager_one_does() -> None:
    results = []
    for capture in (False, True):
        model, x, edges, weights = problem(VARIANTS[0], torch.float32)
        graph = Graph(edges, weights, x.size(0))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, capturable=True)

        def step(model: nn.Module = model, x: Tensor = x, graph: Graph = graph, optimizer=optimizer) -> Tensor:  # type: ignore[no-untyped-def]
            optimizer.zero_grad(set_to_none=False)
            loss = losses(model, x, graph, None)[1]
            loss.backward()
            optimizer.step()
            return loss

        for _ in range(3):
            step()
        torch.cuda.synchronize()
        if capture:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                step()
            for _ in range(2):
                captured.replay()
        else:
            for _ in range(2):
                step()
        torch.cuda.synchronize()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.hostile("compilers")
def test_torch_compile_reduce_overhead() -> None:
    model, x, edges, weights = problem(VARIANTS[0], torch.float32)
    graph = Graph(edges, weights, x.size(0))
    model.eval()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    # A CPU tensor among the inputs of a CUDA graph is copied to where it was at the time of the capture.
    assert all(tensor.is_cuda for tensor in graph.csr(reference.GATV2_RULE, True, torch.float32).tensors)
    with torch.no_grad():
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            x = torch.randn_like(x)
            assert_close(compiled(x, graph)[0].clone(), model(x, graph)[0])


@pytest.mark.hostile("streams")
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device_while_the_first_is_current() -> None:
    model, x, edges, weights = problem(VARIANTS[0], torch.float32)
    expected = model(x, edges, weights)[0]
    other = model.to("cuda:1")
    found = other(x.to("cuda:1"), edges.to("cuda:1"), None if weights is None else weights.to("cuda:1"))[0]
    assert torch.cuda.current_device() == 0
    assert torch.equal(found.to("cuda:0"), expected)


@pytest.mark.hostile("streams")
def test_a_graph_prepared_on_one_stream_serves_another() -> None:
    model, x, edges, weights = problem(VARIANTS[0], torch.float32)
    expected = model(x, edges, weights)[0]
    graph = Graph(edges, weights, x.size(0))
    busy = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            busy = busy @ busy
        graph.csr(reference.GATV2_RULE, True, torch.float32)
    assert torch.equal(model(x, graph)[0], expected)


@pytest.mark.hostile("strides")
def test_strided_and_stride_zero_inputs() -> None:
    model, x, edges, weights = problem(VARIANTS[0], torch.float32)
    expected = model(x, edges, weights)[0]
    wide = torch.empty(x.size(0), x.size(2), 2 * x.size(1), device="cuda")
    wide[:, :, ::2] = x.transpose(1, 2)
    assert torch.equal(model(wide[:, :, ::2].transpose(1, 2), edges, weights)[0], expected)
    logits = model(x.clone().requires_grad_(), edges, weights)[0]
    logits.sum().backward()  # the cotangent of a sum has stride 0


@pytest.mark.hostile("forged-call", "wrong-tensor")
def test_context_survives_bad_calls() -> None:
    model, x, edges, weights = problem(VARIANTS[0], torch.float32)
    with pytest.raises(IndexError):
        model(x, edges + x.size(0), weights)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        model(x.cpu(), edges, weights)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        model(x.half(), edges, weights)
    torch.cuda.synchronize()
    assert model(x, edges, weights)[0].isfinite().all()


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[3]], ids=str)
def test_rolling_prediction(variant: tuple[int, bool, int, int | None, str]) -> None:
    model = problem(variant, torch.float32)[0]
    edges, weights = stock_graph(40, 200)
    series = torch.randn(40, 20, 13)
    found = hiermt.predict_rolling(model, series.cuda(), Graph(edges.cuda(), weights.cuda(), 40), 7, chunk=4)
    model.cpu().double().backend = "reference"
    expected = hiermt.predict_rolling(model, series.double(), Graph(edges, weights.double(), 40), 7)
    assert_close(found.probabilities.cpu(), expected.probabilities)


@pytest.mark.parametrize("nodes", [0, 1])
def test_next_to_nothing(nodes: int) -> None:
    model = hiermt.TGCN_HierarchicalMT(13).cuda()
    edges = torch.empty(2, 0, dtype=torch.int64, device="cuda")
    x = torch.randn(nodes, 5, 13, device="cuda")
    weights = torch.empty(0, device="cuda")
    out = model(x, edges, weights)[0]
    assert out.shape == (nodes, 2)
    out.sum().backward()
    torch.cuda.synchronize()
