"""Capture of training steps, with a replay that runs the step itself in place of a GPU."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from hiermt import DynamicGraph, Graph, MultiTaskLoss, TGCN_HierarchicalMT, data, train_hierarchical, training
from hiermt import windows as gather
from hiermt.data.window_loader import PlannedBatch
from hiermt.nn import inputs as _inputs
from hiermt.testing import stock_graph
from hiermt.training import capture as _capture
from hiermt.training import loop
from hiermt.training.tasks import TwoHeaded

STOCKS, DAYS, FEATURES, WINDOW = 6, 40, 3, 5


def dataset(changing: bool = False) -> data.WindowDataset:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator)
    labels = [torch.randint(2, (STOCKS, DAYS), generator=generator) for _ in range(2)]
    graphs = DynamicGraph([(day, Graph(*stock_graph(STOCKS, 8, 1, day), STOCKS)) for day in (0, 20)])
    if changing:
        return data.WindowDataset.with_graphs(series, graphs, WINDOW, *labels)
    return data.WindowDataset(series, *stock_graph(STOCKS, 8, 1), WINDOW, *labels)


class Replay:
    """Does when replayed what a captured graph does: the step, on whatever lies in the static tensors."""

    def __init__(self, steps: _capture.CapturedSteps, batch: PlannedBatch, losses: Tensor) -> None:
        self.steps, self.batch, self.losses = steps, batch, losses

    def replay(self) -> None:
        self.losses.copy_(self.steps.step(self.steps.loader.gather(*self.batch)))


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes a CPU pass for a GPU; the sizes of the batches that were captured."""
    sizes: list[int] = []

    def capture(self: _capture.CapturedSteps, fixed: tuple[Any, ...], batch: PlannedBatch) -> Any:
        sizes.append(batch.starts.numel())
        static, losses = batch.starts.clone(), torch.full((3,), float("nan"), dtype=torch.float64)
        return _capture.Capture(fixed, Replay(self, batch._replace(starts=static), losses), static, losses)

    class Stream:
        def wait_stream(self, other: object) -> None: ...

    monkeypatch.setattr(_capture.CapturedSteps, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(loop, "can_capture", lambda *_: True)
    return sizes


def train(capture: bool, changing: bool = False, callback: Any = None) -> tuple[object, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = TGCN_HierarchicalMT(FEATURES, 4)
    loader = data.WindowLoader(dataset(changing), range(30), 8, shuffle=True)
    optimizer = training.adam(model, 1e-2)
    result = train_hierarchical(
        model,
        optimizer,
        None,
        loader,
        None,
        4,
        progress=False,
        capture=capture,
        callback=None if callback is None else lambda epoch, _: callback(epoch, optimizer),
    )
    return result, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.hostile("streams")
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("changing", [False, True])
def test_bitwise_equal_to_plain_steps(
    captures: list[int], changing: bool, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu:  # Days are shared as the loader knows them.
        monkeypatch.setattr(gather, "reading_syncs", lambda tensor: True)
        monkeypatch.setattr(_inputs, "MOST_DAYS_ON_GPU", 0.95)
        monkeypatch.setattr(_inputs.dispatch, "native", lambda *_: True)
    assert _inputs.gather.reading_syncs(torch.empty(0)) == gpu
    found, expected = train(True, changing), train(False, changing)
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], tensor) for name, tensor in expected[1].items())
    # The last batch of an epoch is smaller, and runs plainly; each graph is captured once.
    assert captures == [8] * (2 if changing else 1)


def test_a_changed_learning_rate_is_captured_anew(captures: list[int]) -> None:
    def halve(epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 2:
            optimizer.param_groups[0]["lr"] /= 2

    found, expected = train(True, callback=halve), train(False, callback=halve)
    assert found[0] == expected[0]
    assert captures == [8, 8]


@pytest.mark.parametrize("what", ["edge_weight", "edge_index"])
def test_a_graph_that_is_written_to_is_captured_anew(captures: list[int], what: str) -> None:
    def trained(capture: bool) -> Any:
        full = dataset()

        def write(epoch: int, _: object) -> None:
            if epoch == 2:
                tensor = getattr(full.graph, what)
                tensor.mul_(0.5) if what == "edge_weight" else tensor.copy_(tensor.flip(0).roll(1, 1))

        torch.manual_seed(0)
        model = TGCN_HierarchicalMT(FEATURES, 4)
        loader = data.WindowLoader(full, range(24), 8)
        losses = train_hierarchical(
            model, training.adam(model, 1e-2), None, loader, None, 5, progress=False, capture=capture, callback=write
        )
        return losses, [parameter.detach().clone() for parameter in model.parameters()]

    found, expected = trained(True), trained(False)
    assert captures == [8, 8]
    assert found[0] == expected[0]
    assert all(torch.equal(one, other) for one, other in zip(found[1], expected[1], strict=True))


@pytest.mark.usefixtures("captures")
def test_a_capture_keeps_its_graph_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # As a CUDA graph it knows addresses only.
    class Blind:
        def replay(self) -> None: ...

    def capture(self: _capture.CapturedSteps, fixed: tuple[Any, ...], batch: PlannedBatch) -> Any:
        return _capture.Capture(fixed, Blind(), batch.starts.clone(), torch.zeros(3, dtype=torch.float64))

    monkeypatch.setattr(_capture.CapturedSteps, "_capture", capture)
    loader = data.WindowLoader(dataset(), range(24), 8)
    model = TGCN_HierarchicalMT(FEATURES, 4)
    steps = _capture.CapturedSteps(loader, training.adam(model), lambda batch: torch.zeros(3, dtype=torch.float64))
    planned = loader.plan()[0]

    def run(times: int) -> Any:
        graph = Graph(*stock_graph(STOCKS, 8, 1), STOCKS)
        for _ in range(times):
            steps.run(planned._replace(graph=graph))
        return weakref.ref(graph)

    replayed, plain = run(6), run(1)
    gc.collect()
    # Its lists are read by the replay; another graph in its place would be taken for it.
    assert replayed() is not None and plain() is None
    assert list(steps.captured) == [replayed()] and list(steps.prepared) == [replayed()]


def test_a_step_that_cannot_be_captured_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def __init__(self, *_: object, **options: object) -> None:
            assert options == {"capture_error_mode": "thread_local"}

        def __enter__(self) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

        def __exit__(self, *_: object) -> None: ...

    for name in ("CUDAGraph", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", Refuses)
    loader = data.WindowLoader(dataset(), range(24), 8)
    steps = _capture.CapturedSteps(loader, training.adam(TGCN_HierarchicalMT(FEATURES, 4)), lambda batch: batch.x)
    with pytest.raises(RuntimeError, match=r"cannot be captured .*not permitted when .* pass capture=False"):
        steps._capture((), loader.plan()[0])
    assert not steps.captured


def test_a_graph_is_prepared_before_its_first_capture(captures: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    # To sort edges waits for the device, which a capture does not allow.
    capture = _capture.CapturedSteps._capture

    def checked(self: _capture.CapturedSteps, fixed: tuple[Any, ...], batch: PlannedBatch) -> Any:
        assert batch.graph._csr
        return capture(self, fixed, batch)

    monkeypatch.setattr(_capture.CapturedSteps, "_capture", checked)
    torch.manual_seed(0)
    model, full = TGCN_HierarchicalMT(FEATURES, 4), dataset()
    graphs = DynamicGraph([(day, Graph(*stock_graph(STOCKS, 8, 1, day), STOCKS)) for day in range(0, 30, 6)])
    assert full.signal_labels is not None and full.direction_labels is not None
    changing = data.WindowDataset.with_graphs(full.series, graphs, WINDOW, full.signal_labels, full.direction_labels)
    loader = data.WindowLoader(changing, range(30), 6, drop_last=True)
    train_hierarchical(model, training.adam(model, 1e-2), None, loader, None, 3, progress=False)
    assert captures == [6] * 4


def test_a_learning_rate_that_changes_with_each_step_is_not_captured(captures: list[int]) -> None:
    model = TGCN_HierarchicalMT(FEATURES, 4)
    optimizer = training.adam(model, 1e-2)
    loader = data.WindowLoader(dataset(), range(24), 8)
    optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.param_groups[0].update(lr=optimizer.lr_left()))
    rates = iter([1e-2] * 4 + [1e-2 * 0.9**i for i in range(20)])
    optimizer.lr_left = lambda: next(rates)  # type: ignore[attr-defined]
    train_hierarchical(model, optimizer, None, loader, None, 5, progress=False)
    assert captures == [8]


@pytest.mark.parametrize("tensor", [False, True])
def test_a_scheduler_beside_captured_steps(captures: list[int], tensor: bool) -> None:
    found = []
    for capture in (True, False):
        torch.manual_seed(0)
        model = TGCN_HierarchicalMT(FEATURES, 4)
        optimizer = training.adam(model, torch.tensor(1e-2) if tensor else 1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        loader = data.WindowLoader(dataset(), range(30), 8, shuffle=True)
        losses = train_hierarchical(
            model, optimizer, None, loader, None, 5, progress=False, capture=capture, scheduler=scheduler
        )
        found.append((losses, [parameter.tolist() for parameter in model.parameters()]))
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e-4)
    assert found[0] == found[1]
    assert captures == [8, 8, 8]  # once with each rate, as a tensor on the host is read when a step is captured


def test_a_rate_on_the_device_is_read_anew_and_another_tensor_captured_anew() -> None:
    class OnDevice(Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]

    rate = torch.tensor(1e-2).as_subclass(OnDevice)
    model = TGCN_HierarchicalMT(FEATURES, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    optimizer.param_groups[0]["lr"] = rate
    before = _capture._hyperparameters(optimizer)
    rate.fill_(1e-3)
    assert _capture._hyperparameters(optimizer) == before
    optimizer.param_groups[0]["lr"] = rate.clone().as_subclass(OnDevice)
    assert _capture._hyperparameters(optimizer) != before


@pytest.mark.parametrize("what", ["freeze", "replace", "number"])
def test_a_model_that_a_callback_changes_is_captured_anew(captures: list[int], what: str) -> None:
    model = TGCN_HierarchicalMT(FEATURES, 4)
    model.tgcn_backbone.out.append(torch.nn.Dropout(0.0))

    def change(epoch: int, metrics: dict[str, float]) -> None:
        weight = next(model.parameters())
        if epoch != 3:
            return
        if what == "freeze":
            weight.requires_grad_(False)
        elif what == "replace":
            weight.data = weight.data.clone()
        else:
            model.tgcn_backbone.out[-1].p = 0.5

    loader = data.WindowLoader(dataset(), range(24), 8)
    optimizer = training.adam(model, 1e-2)
    train_hierarchical(model, optimizer, None, loader, None, 6, progress=False, callback=change)
    assert captures == [8, 8]


def test_only_what_can_be_captured_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TGCN_HierarchicalMT(FEATURES, 4)
    loader = data.WindowLoader(dataset(), range(30), 8)
    optimizer = torch.optim.Adam(model.parameters())
    assert not _capture.can_capture(model, optimizer, TwoHeaded(), loader, "cpu")
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True))
    assert not _capture.can_capture(model, optimizer, TwoHeaded(), loader, "cuda")  # not capturable
    optimizer.param_groups[0]["capturable"] = True
    assert _capture.can_capture(model, optimizer, TwoHeaded(), loader, "cuda")
    assert not _capture.can_capture(model, optimizer, TwoHeaded(), list(loader), "cuda")
    assert not _capture.can_capture(model, optimizer, TwoHeaded(torch.nn.CrossEntropyLoss()), loader, "cuda")
    assert not _capture.can_capture(model, optimizer, TwoHeaded(MultiTaskLoss(process_group=object())), loader, "cuda")
