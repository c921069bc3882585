"""Windows with shared days: model, loaders and training with and without sharing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from hiermt import (
    TGCN,
    DynamicGraph,
    Graph,
    MultiTaskLoss,
    TGCN_HierarchicalMT,
    Windows,
    data,
    inference_hierarchical,
    train_hierarchical,
)
from hiermt.nn import inputs as _inputs
from hiermt.testing import assert_close, stock_graph
from support.processes import two_processes

STOCKS, DAYS, FEATURES, WINDOW = 9, 50, 4, 6
VARIANTS = [
    {},
    {"layers_nb": 1},
    {"layers_nb": 3, "hidden_size": 17},
    {"use_gat": False},
    {"use_gat": False, "conv_activation": "after"},
    {"conv_layers": 1, "edge_dim": None, "conv_activation": "after"},
]


def stocks(seed: int = 0, weighted: bool = True, dtype: torch.dtype = torch.float32) -> Graph:
    edge_index, edge_weight = stock_graph(STOCKS, 24, 2, seed)
    return Graph(edge_index, edge_weight.to(dtype) if weighted else None, STOCKS)


def dataset(changing: bool = False, dtype: torch.dtype = torch.float64) -> data.WindowDataset:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    signal = (torch.rand(STOCKS, DAYS, generator=generator) < 0.4).long()
    direction = torch.randint(2, (STOCKS, DAYS), generator=generator)
    if changing:
        graphs = DynamicGraph([(0, stocks(0, dtype=dtype)), (20, stocks(1, dtype=dtype)), (33, stocks(2, dtype=dtype))])
        return data.WindowDataset.with_graphs(series, graphs, WINDOW, signal, direction)
    graph = stocks(dtype=dtype)
    return data.WindowDataset(series, graph.edge_index, graph.edge_weight, WINDOW, signal, direction)


def results(model: TGCN_HierarchicalMT, x: Any, graph: Graph) -> tuple[list[Tensor], list[Tensor]]:
    outs = list(model(x, graph))
    loss = outs[0].square().sum() + outs[1].sin().sum()
    return outs, list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_model_gives_the_numbers_of_the_copied_windows(
    backend: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    model = TGCN_HierarchicalMT(FEATURES, backend=backend, **options).to(dtype)
    graph = stocks(weighted=options.get("edge_dim", 1) is not None)
    windows = Windows(dataset(dtype=dtype).series, torch.tensor([30, 3, 4, 4, 21, 2, 44]), WINDOW)
    outs, grads = results(model, windows, graph)
    expected, expected_grads = results(model, windows.gather(), graph)
    for got, want in zip(outs, expected, strict=True):
        assert got.shape == want.shape == (7, STOCKS, 2)
        assert torch.equal(got, want) or backend != "native"
        assert_close(got, want)
    for got, want in zip(grads, expected_grads, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert_close(got, want, gradient=True)


def test_backbone_and_decision_take_windows(backend: str) -> None:
    windows = Windows(dataset().series, torch.arange(5), WINDOW)
    backbone = TGCN(FEATURES, 3, 8, backend=backend).double()
    assert_close(backbone(windows, stocks()), backbone(windows.gather(), stocks()))
    model = TGCN_HierarchicalMT(FEATURES, backend=backend).double()
    found, expected = model.decide(windows, stocks()), model.decide(windows.gather(), stocks())
    assert torch.equal(found[0], expected[0])
    assert_close(found[1], expected[1])
    assert_close(found[2], expected[2])


@pytest.mark.parametrize("steps", [0, 1, WINDOW])
@pytest.mark.parametrize("starts", [[3, 9, 4], [10, 1, 30], [], [7, 7], [44]])
def test_shared_keeps_each_day_once(starts: list[int], steps: int) -> None:
    series = dataset().series
    windows = Windows(series, torch.tensor(starts, dtype=torch.int64), steps)
    shared = windows.shared()
    days = sorted({start + step for start in starts for step in range(steps)})
    assert windows.days().tolist() == days and shared.series.size(1) == (len(days) if starts else steps)
    assert torch.equal(shared.gather(), windows.gather())
    together = days == list(range(days[0], days[-1] + 1)) if days else True
    assert (shared.series.untyped_storage().data_ptr() == series.untyped_storage().data_ptr()) == together


def test_windows_that_do_not_fit_are_refused(backend: str) -> None:
    model = TGCN_HierarchicalMT(FEATURES, backend=backend).double()
    series = dataset().series
    with pytest.raises(IndexError, match="45 is outside"):
        model(Windows(series, torch.tensor([45]), WINDOW), stocks())
    with pytest.raises(ValueError, match=r"windows of a series \[N, D, 4\]"):
        model(Windows(series[..., :3], torch.tensor([0]), WINDOW), stocks())
    with pytest.raises(ValueError, match="x has 5 nodes, the Graph has 9"):
        model(Windows(series[:5], torch.tensor([0]), WINDOW), stocks())


def test_batches_gather_x_at_the_first_access() -> None:
    source = dataset()
    batch = next(iter(data.WindowLoader(source, batch_size=4)))
    assert batch.windows.series is source.series and batch.to("cpu") is batch
    assert "x" not in vars(batch) and batch.num_nodes == 4 * STOCKS
    assert batch.x is batch.x and torch.equal(batch.x, source.windows[:4])


def fit(share: bool | None, changing: bool = False, backend: str = "auto", **options: Any) -> tuple[Any, Any, Any]:
    source = dataset(changing)
    loader = data.WindowLoader(source, range(40), 8, shuffle=True, seed=1)
    test = data.WindowLoader(source, range(30, 44), 64)
    torch.manual_seed(0)
    model = TGCN_HierarchicalMT(FEATURES, 5, backend=backend, **options).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    train, tested, _ = train_hierarchical(model, optimizer, None, loader, test, 3, progress=False, share_days=share)
    return train, tested, model.state_dict()


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_gat": False}], ids=str)
def test_training_with_and_without(
    backend: str, options: dict[str, Any], changing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    run = TGCN.last_state

    def counted(self: Any, x: Any, *args: Any) -> Any:
        nonlocal calls
        calls += isinstance(x, Windows)
        return run(self, x, *args)

    monkeypatch.setattr(TGCN, "last_state", counted)
    plain = fit(False, changing, backend, **options)
    assert calls == 0
    shared = fit(True, changing, backend, **options)
    assert calls > 3 * 5
    assert shared[0] == pytest.approx(plain[0], rel=1e-10) and shared[1] == pytest.approx(plain[1], rel=1e-10)
    for name, tensor in plain[2].items():
        torch.testing.assert_close(shared[2][name], tensor, rtol=1e-8, atol=1e-11)
    again = fit(True, changing, backend, **options)
    assert again[0] == shared[0] and all(torch.equal(again[2][name], shared[2][name]) for name in plain[2])


def test_share_follows_the_count() -> None:
    source = dataset()
    loader = data.WindowLoader(source, range(44), 4)

    def shares(starts: list[int]) -> bool:
        model = TGCN_HierarchicalMT(FEATURES).double()
        batch = loader.gather(torch.tensor(starts))
        return isinstance(_inputs.shared_inputs(model, batch, "cpu")[0], Windows)

    # 24 days of windows: 12 different ones are half of them.
    assert shares([0, 1, 2, 3]) and shares([0, 0, 10, 10]) and shares([0, 3, 6, 3])
    assert not shares([0, 3, 7, 3]) and not shares([0, 10, 20, 30]) and not shares([5])


def test_models_that_cannot_share_days_fall_back_and_say_why() -> None:
    batch = next(iter(data.WindowLoader(dataset(), batch_size=4)))
    model = TGCN_HierarchicalMT(FEATURES).double()

    def reason(model: torch.nn.Module, batch: Any) -> str:
        assert isinstance(_inputs.shared_inputs(model, batch, "cpu")[0], Tensor)
        found = _inputs.why_not_shared(model, batch)
        assert found is not None
        with pytest.raises(ValueError, match="share_days"):
            _inputs.shared_inputs(model, batch, "cpu", True)
        return found

    assert _inputs.why_not_shared(TGCN_HierarchicalMT(FEATURES, layout="NFT"), batch) is None
    assert "Linear does not accept windows" in reason(torch.nn.Linear(2, 2), batch)
    plain = dataclasses.make_dataclass("Plain", ["x", "edge_index"])(batch.x, batch.edge_index)
    assert "not windows of one series" in reason(model, plain)
    assert _inputs.why_not_shared(model, batch) is None


def test_inference_shares_where_it_pays() -> None:
    model = TGCN_HierarchicalMT(FEATURES).double()
    batch = next(iter(data.WindowLoader(dataset(), batch_size=16)))
    predictions, confidences, _ = inference_hierarchical(model, batch)
    assert "x" not in vars(batch)
    plain = model.decide(batch.x, batch.graph)
    assert torch.equal(predictions, plain[0])
    assert_close(confidences, plain[1])


def worker(rank: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    states = []
    for share in (False, True):
        torch.manual_seed(0)
        model = TGCN_HierarchicalMT(FEATURES, 5).double()
        loader = data.WindowLoader(dataset(), range(20 * rank, 20 * rank + 20), 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        criterion = MultiTaskLoss(process_group=distributed.group.WORLD)
        train_hierarchical(
            DistributedDataParallel(model), optimizer, criterion, loader, None, 2, progress=False, share_days=share
        )
        states.append(model.state_dict())
    torch.save(states, f"{out}.{rank}")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_two_processes_share_too(tmp_path: Path) -> None:
    two_processes(worker, str(tmp_path / "rendezvous"), str(tmp_path / "out"))
    one, other = (torch.load(tmp_path / f"out.{rank}", weights_only=True) for rank in range(2))
    for name, tensor in one[0].items():
        torch.testing.assert_close(one[1][name], tensor, rtol=1e-9, atol=1e-12)
        assert torch.equal(one[1][name], other[1][name])
