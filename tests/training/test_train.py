"""The training loop on every task: against a plain loop, resumed, stopped early, with shared days."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hiermt
from hiermt import data
from hiermt.testing import stock_graph
from hiermt.training.tasks import Binary, Classification, Regression, Several, Task, TwoHeaded

STOCKS, DAYS, FEATURES, WINDOW = 12, 40, 5, 6


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, count: int = 3) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(1))


def series() -> Tensor:
    return made(STOCKS, DAYS, FEATURES)


def dataset(**targets: Tensor) -> data.WindowDataset:
    return data.WindowDataset(series(), *stock_graph(STOCKS, 40), WINDOW, targets=targets)


def backbone(out_channels: int, **options: Any) -> hiermt.TGCN:
    torch.manual_seed(3)
    return hiermt.TGCN(FEATURES, out_channels, 8, 2, **options)


CASES: dict[str, tuple[Task, int, Tensor, Any]] = {
    "classes": (
        Classification(3),
        3,
        classes(STOCKS, DAYS - 1),
        lambda z, y: F.cross_entropy(z.reshape(-1, 3), y.reshape(-1)),
    ),
    "binary": (
        Binary(),
        1,
        classes(STOCKS, DAYS - 1, count=2),
        lambda z, y: F.binary_cross_entropy_with_logits(z.reshape(-1), y.reshape(-1).float()),
    ),
    "horizons": (
        Regression(),
        4,
        made(STOCKS, DAYS - 4, 4, seed=6),
        lambda z, y: (z - y.reshape(z.shape)).abs().mean(),
    ),
}


class TestTraining:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("loader", ["windows", "pyg"])
    def test_equals_a_plain_loop(self, case: str, loader: str) -> None:
        task, channels, y, loss = CASES[case]
        source = dataset(y=y)
        starts = range(24)
        if loader == "pyg":
            pytest.importorskip("torch_geometric")
        make = data.WindowLoader if loader == "windows" else data.pyg_loader
        batches = make(source, starts, 8)
        model = backbone(channels)
        plain, losses = copy.deepcopy(model), []
        optimizer = torch.optim.Adam(plain.parameters(), 1e-2)
        for _ in range(2):
            total = 0.0
            for start in range(0, 24, 8):
                x = source.windows[start : start + 8].flatten(0, 1)
                days = torch.arange(start, start + 8) + WINDOW - 1
                edges = hiermt.testing.batched(source.edge_index, source.edge_weight, STOCKS, 8)
                value = loss(plain(x, *edges), y[:, days].transpose(0, 1).flatten(0, 1))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                total += value.item()
            losses.append(total / 3)
        history = hiermt.train(
            model, torch.optim.Adam(model.parameters(), 1e-2), task, batches, None, 2, progress=False
        )
        assert history.train_losses == pytest.approx(losses, rel=1e-5)
        assert history.history == {"total_loss": history.train_losses} and not history.test_losses
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-3, atol=1e-5)

    def test_targets_bound_the_labelled_windows(self) -> None:
        source = dataset(y=classes(STOCKS, DAYS - 3), far=made(STOCKS, DAYS - 9))
        assert source.num_labelled == DAYS - 9 - WINDOW + 1 and source.num_windows == DAYS - WINDOW + 1
        first = next(iter(data.WindowLoader(source, [2, 5], 2)))
        assert torch.equal(first.y, source.targets["y"][:, [7, 10]].t()) and first.far.shape == (2, STOCKS)
        with pytest.raises(AttributeError, match="has no 'z'"):
            first.z  # noqa: B018
        assert copy.deepcopy(first).y.equal(first.y)

    @pytest.mark.parametrize("kind", ["stop", "resume"])
    def test_resume_and_patience(self, kind: str, tmp_path: Any) -> None:
        task = Classification(3, weight=[1.0, 2.0, 3.0])
        source = dataset(y=classes(STOCKS, DAYS))

        def run(epochs: int, **options: Any) -> Any:
            model = backbone(3)
            optimizer = torch.optim.Adam(model.parameters(), 1e-2)
            loaders = data.WindowLoader(source, range(16), 8, shuffle=True), data.WindowLoader(source, range(16, 30), 8)
            return hiermt.train(model, optimizer, task, *loaders, epochs, progress=False, **options), model

        if kind == "stop":
            history, model = run(60, patience=2)
            assert history.epoch < 60
            loss = hiermt.evaluate(model, task, data.WindowLoader(source, range(16, 30), 8))["total_loss"]
            assert loss == pytest.approx(min(history.test_losses), rel=1e-6)
            return
        whole, expected = run(4)
        run(2, checkpoint=tmp_path / "state.pt")
        resumed, model = run(4, checkpoint=tmp_path / "state.pt", resume=True)
        assert resumed.history == whole.history and resumed.test_losses == whole.test_losses
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
        other = Regression()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        loaders = data.WindowLoader(source, range(16), 8, shuffle=True), data.WindowLoader(source, range(16, 30), 8)
        with pytest.raises(ValueError, match="criterion"):
            hiermt.train(model, optimizer, other, *loaders, 5, checkpoint=tmp_path / "state.pt", resume=True)

    @pytest.mark.parametrize("task", [Classification(3), Regression()])
    def test_a_test_span_without_labels_does_not_choose_the_weights(self, task: Task) -> None:
        known = (torch.arange(DAYS) < 16 + WINDOW - 1).expand(STOCKS, -1)
        y = classes(STOCKS, DAYS)
        source = dataset(y=y if isinstance(task, Classification) else y.float(), target_mask=known)

        def run(**options: Any) -> Any:
            model = backbone(3 if isinstance(task, Classification) else 1)
            optimizer = torch.optim.Adam(model.parameters(), 1e-2)
            loaders = data.WindowLoader(source, range(16), 8), data.WindowLoader(source, range(16, 30), 8)
            return hiermt.train(model, optimizer, task, *loaders, 4, progress=False, **options), model

        with pytest.warns(UserWarning, match="patience: the test loss is 0") as warned:
            history, model = run(patience=2)
        assert {one.filename for one in warned} == {__file__}
        assert history.epoch == 4 and history.test_losses == [0.0] * 4
        _, expected = run()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))

    def test_shared_days_give_the_same_training(self) -> None:
        source, found = dataset(y=classes(STOCKS, DAYS)), []
        for share in (True, False):
            model = backbone(3).double()
            own = data.WindowDataset(series().double(), *stock_graph(STOCKS, 40), WINDOW, targets=source.targets)
            loader = data.WindowLoader(own, range(20), 10)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            hiermt.train(model, optimizer, Classification(3), loader, None, 2, progress=False, share_days=share)
            found.append(torch.cat([each.detach().flatten() for each in model.parameters()]))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)

    def test_predict(self) -> None:
        source = dataset(y=classes(STOCKS, DAYS))
        model, loader = backbone(3), data.WindowLoader(source, range(20), 8)
        found = hiermt.predict(model, Classification(3), loader)
        logits = model(source.windows[:20], source.graph)
        assert torch.equal(found["predictions"], logits.argmax(-1))
        torch.testing.assert_close(found["probabilities"], logits.softmax(-1))
        single = hiermt.predict(model, Classification(3), next(iter(loader)))
        assert torch.equal(single["predictions"], found["predictions"][:8])
        two = hiermt.TGCN_HierarchicalMT(FEATURES, 8)
        decided = hiermt.predict(two, TwoHeaded(threshold=0.4), loader)
        assert torch.equal(decided["predictions"], two.decide(source.windows[:20], source.graph, threshold=0.4)[0])

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            ({"x": made(STOCKS, 3)}, "'x' cannot be the name of a target"),
            ({"y": made(3, 3)}, r"targets\['y'\]: expected \[12, days, \.\.\.\]"),
            ({"y": made(STOCKS, DAYS + 1)}, "at most 40 days"),
            ({"y": [1, 2]}, "expected a Tensor, got list"),
        ],
    )
    def test_targets_that_do_not_fit(self, targets: Any, message: str) -> None:
        with pytest.raises(data.DataError, match=message):
            dataset(**targets)

    def test_a_task_that_contradicts_the_model_changes_nothing(self) -> None:
        model = backbone(3)
        before = copy.deepcopy(model.state_dict())
        loader = data.WindowLoader(dataset(y=classes(STOCKS, DAYS)), batch_size=8)
        optimizer = torch.optim.Adam(model.parameters())
        for task in (Classification(4), TwoHeaded(), Several({"y": Classification(3)})):
            with pytest.raises(ValueError, match=r"expects|has no signal_labels"):
                hiermt.train(model, optimizer, task, loader, None, 1, progress=False)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        with pytest.raises(TypeError, match=r"task: expected one of hiermt\.tasks"):
            hiermt.train(model, optimizer, nn.CrossEntropyLoss(), loader, None, 1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="loader: has no batch"):
            hiermt.evaluate(model, Classification(3), [])
        with pytest.raises(TypeError, match="data: expected a batch with x"):
            hiermt.predict(model, Classification(3), 3)


class TestHistories:
    """A task in place of the two-headed decision: rolling over a history, and live."""

    @pytest.mark.parametrize("layout", ["NTF", "NFT"])
    def test_rolling_and_live(self, layout: str) -> None:
        model, graph, days = backbone(3, layout=layout), hiermt.Graph(*stock_graph(STOCKS, 40), STOCKS), series()
        task = Classification(3)
        found = hiermt.predict_rolling(model, days, graph, WINDOW, 2, chunk=3, task=task)
        windows = data.windows(days, WINDOW)[::2]
        expected = task.decide(model(windows if layout == "NTF" else windows.transpose(2, 3), graph))
        assert set(found) == set(expected) and torch.equal(found["predictions"], expected["predictions"])
        torch.testing.assert_close(found["probabilities"], expected["probabilities"])
        live = hiermt.LivePredictor(model, graph, WINDOW, task=task)
        assert live.extend(days[:, : WINDOW - 1]) is None
        last = live.append(days[:, WINDOW - 1])
        torch.testing.assert_close(last["probabilities"], expected["probabilities"][:1])

    def test_refusals(self) -> None:
        model, graph = backbone(3), hiermt.Graph(*stock_graph(STOCKS, 40), STOCKS)
        with pytest.raises(TypeError, match=r"got TGCN, which has no decide; give the task"):
            hiermt.predict_rolling(model, series(), graph)
        with pytest.raises(TypeError, match=r"task: expected one of hiermt\.tasks"):
            hiermt.predict_rolling(model, series(), graph, task="classes")  # type: ignore[call-overload]
        with pytest.raises(ValueError, match=r"threshold: 0\.7 was given beside a task"):
            hiermt.LivePredictor(model, graph, threshold=0.7, task=Classification(3))
        with pytest.raises(TypeError, match="expected a model of hiermt, got Linear"):
            hiermt.predict_rolling(nn.Linear(2, 2), series(), graph, task=Classification(2))
