"""Training on a GPU: captured steps, mixed precision, and torch's own way of capturing a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt import DynamicGraph, Graph, data, train_hierarchical, training
from hiermt.native import extension
from hiermt.testing import stock_graph
from hiermt.training import capture as _capture

DEVICE = "cuda"
REASON = "needs a GPU" if not torch.cuda.is_available() else extension.why_not_native("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.usefixtures("cuda_stream"),
]
STOCKS, DAYS, FEATURES, WINDOW = 20, 60, 13, 7


def dataset(blocks: int) -> data.WindowDataset:
    """Random prices with labels, on one graph or on one for each block of days."""
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator)
    labels = [torch.randint(2, (STOCKS, DAYS), generator=generator) for _ in range(2)]
    if blocks == 1:
        return data.WindowDataset(series, *stock_graph(STOCKS, 60, 2), WINDOW, *labels)
    days = range(0, DAYS, DAYS // blocks)
    graphs = DynamicGraph([(day, Graph(*stock_graph(STOCKS, 60, 2, day), STOCKS)) for day in days])
    return data.WindowDataset.with_graphs(series, graphs, WINDOW, *labels)


def train(
    capture: bool, blocks: int, device: str, use_gat: bool, share: bool | None = None, shuffle: bool = True
) -> tuple[Any, list[Tensor]]:
    """Losses and parameters after a few epochs, the learning rate halved on the way."""
    torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(FEATURES, 16, use_gat=use_gat).to(device)
    optimizer = training.adam(model, 1e-2)

    def halve(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 4:
            optimizer.param_groups[0]["lr"] /= 2

    losses = train_hierarchical(
        model,
        optimizer,
        None,
        data.WindowLoader(dataset(blocks), range(45), 8, shuffle=shuffle, device=device),
        data.WindowLoader(dataset(blocks), range(45, 50), 8, device=device),
        7,
        device=device,
        progress=False,
        capture=capture,
        callback=halve,
        share_days=share,
    )
    return losses, [param.detach().clone() for param in model.parameters()]


@pytest.mark.parametrize("device", [DEVICE, f"{DEVICE}:0"])
@pytest.mark.parametrize("use_gat", [True, False])
@pytest.mark.parametrize("blocks", [1, 3])
def test_captured_steps_equal_plain_ones(
    blocks: int, use_gat: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[int] = []
    capture = _capture.CapturedSteps._capture

    def counted(self: _capture.CapturedSteps, *args: Any) -> Any:
        captured.append(id(args[1].graph))
        return capture(self, *args)

    monkeypatch.setattr(_capture.CapturedSteps, "_capture", counted)
    expected = train(False, blocks, device, use_gat)
    assert not captured
    found = train(True, blocks, device, use_gat)
    # Each graph once with each learning rate.
    assert len(set(captured)) == blocks and len(captured) == 2 * blocks
    assert found[0] == expected[0]
    assert all(torch.equal(one, other) for one, other in zip(found[1], expected[1], strict=True))
    assert found[0][0][-1] < found[0][0][0]


@pytest.mark.parametrize("use_gat", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("blocks", [1, 3])
def test_captured_steps_that_share_days(blocks: int, shuffle: bool, use_gat: bool) -> None:
    plain = train(False, blocks, DEVICE, use_gat, True, shuffle)
    captured = train(True, blocks, DEVICE, use_gat, True, shuffle)
    copied = train(True, blocks, DEVICE, use_gat, False, shuffle)
    assert captured[0] == plain[0]
    assert all(torch.equal(one, other) for one, other in zip(captured[1], plain[1], strict=True))
    assert captured[0][0] == pytest.approx(copied[0][0], rel=1e-3)


@pytest.mark.parametrize("tensor", [False, True])
def test_a_scheduler_beside_captured_steps(tensor: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[int] = []
    capture = _capture.CapturedSteps._capture
    monkeypatch.setattr(
        _capture.CapturedSteps, "_capture", lambda self, *args: captured.append(1) or capture(self, *args)
    )

    def run(epochs: int, **options: Any) -> tuple[Any, list[Tensor]]:
        torch.manual_seed(0)
        model = hiermt.TGCN_HierarchicalMT(FEATURES, 16).to(DEVICE)
        optimizer = training.adam(model, torch.tensor(1e-2, device=DEVICE) if tensor else 1e-2)
        loader = data.WindowLoader(dataset(1), range(45), 8, shuffle=True, device=DEVICE)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        losses = train_hierarchical(
            model, optimizer, None, loader, None, epochs, device=DEVICE, progress=False, scheduler=scheduler, **options
        )
        return losses, [parameter.detach().clone() for parameter in model.parameters()]

    expected = run(6, capture=False)
    assert not captured
    path = tmp_path / "state.pt"
    whole = run(6)
    # A rate on the device is read by each replay; a number is part of what was captured.
    assert len(captured) == 1 if tensor else len(captured) > 1
    run(3, checkpoint=path)
    for found in (whole, run(6, checkpoint=path, resume=True)):
        assert found[0] == expected[0]
        assert all(torch.equal(one, other) for one, other in zip(found[1], expected[1], strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_captured_steps_on_another_than_the_current_device() -> None:
    assert torch.cuda.current_device() == 0
    found, expected = train(True, 1, "cuda:1", True), train(False, 1, "cuda:1", True)
    assert found[0] == expected[0]


@pytest.mark.parametrize("use_gat", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_learns(dtype: torch.dtype, use_gat: bool) -> None:
    torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(FEATURES, 16, use_gat=use_gat).to(DEVICE)
    edges, weights = stock_graph(STOCKS, 60, 2)
    graph = Graph(edges.to(DEVICE), weights.to(DEVICE), STOCKS)
    x = torch.randn(4, STOCKS, WINDOW, FEATURES, device=DEVICE)
    targets = torch.randint(2, (2, 4 * STOCKS), device=DEVICE)
    criterion, optimizer = hiermt.MultiTaskLoss(), training.adam(model, 1e-2)
    scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype):
            signal, direction = model(x, graph)
            loss = criterion.terms(signal, direction, targets[0], targets[1], targets[0] == 1).total
        assert signal.dtype == dtype and loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(param.dtype == torch.float32 and param.isfinite().all() for param in model.parameters())


class Fixed(nn.Module):
    """A model on one graph, which torch captures with nothing but tensors."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        super().__init__()
        self.model, self.graph = model, graph

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.model(x, self.graph), dim=1)


@pytest.mark.parametrize("hidden", [16, 20])
def test_forward_and_backward_as_torch_captures_them(hidden: int) -> None:
    torch.manual_seed(0)
    edges, weights = stock_graph(STOCKS, 60, 2)
    graph = Graph(edges.to(DEVICE), weights.to(DEVICE), STOCKS)
    model = Fixed(hiermt.TGCN_HierarchicalMT(FEATURES, hidden).to(DEVICE), graph)
    inputs = [torch.randn(STOCKS, WINDOW, FEATURES, device=DEVICE) for _ in range(3)]
    seed = torch.randn(STOCKS, 4, device=DEVICE)

    def run(module: Any) -> list[Tensor]:
        found = []
        for x in inputs:
            out = module(x)
            grads = torch.autograd.grad(out, list(model.parameters()), seed)
            # The next call writes where this one did.
            found += [out.detach().clone(), *(grad.clone() for grad in grads)]
        return found

    expected = run(model)
    captured = torch.cuda.make_graphed_callables(model, (torch.randn_like(inputs[0]),))
    assert all(torch.equal(one, other) for one, other in zip(run(captured), expected, strict=True))
