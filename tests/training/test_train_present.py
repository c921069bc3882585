"""Trainings on stocks that come and go, against a plain loop of PyG on the subgraph of each day."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt import data, training
from hiermt.testing import stock_graph
from hiermt.training.tasks import Binary, Classification, Regression, Several, Task, TwoHeaded
from support import subgraphs

pytestmark = pytest.mark.hostile("absent")

STOCKS, DAYS, FEATURES, WINDOW = 9, 40, 4, 6


def dataset(dtype: torch.dtype = torch.float64, masked: bool = True, **targets: Tensor) -> data.WindowDataset:
    """Stock 0 lists on day 20, 1 leaves on day 25, 2 is there now and then; 3 has no label on some days."""
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    labels = [torch.randint(2, (STOCKS, DAYS), generator=generator) for _ in range(2)]
    present = torch.ones(STOCKS, DAYS, dtype=torch.bool)
    known = torch.ones(STOCKS, DAYS, dtype=torch.bool)
    if masked:
        present[0, :20], present[1, 25:] = False, False
        present[2] = torch.rand(DAYS, generator=generator) < 0.5
        known[3, 10:20] = False
    return data.WindowDataset(
        series.masked_fill(~present.unsqueeze(-1), torch.nan),
        *(one.to(dtype) if one.is_floating_point() else one for one in stock_graph(STOCKS, 20, 1)),
        WINDOW,
        *labels,
        targets={"target_mask": known, **targets},
        present=present,
    )


def two_headed(dtype: torch.dtype = torch.float64, **options: Any) -> hiermt.TGCN_HierarchicalMT:
    torch.manual_seed(0)
    return hiermt.TGCN_HierarchicalMT(FEATURES, 5, 2, **options).to(dtype)


@pytest.mark.parametrize("use_gat", [True, False])
@pytest.mark.parametrize("share_days", [True, False])
def test_equals_a_loop_of_pyg_on_subgraphs(use_gat: bool, share_days: bool) -> None:
    pyg = pytest.importorskip("hiermt.testing.pyg")
    whole, model = dataset(), two_headed(use_gat=use_gat)
    reference = pyg.HierarchicalMT(FEATURES, 5, 2, use_gat=use_gat).double()
    reference.load_state_dict(model.state_dict())
    expected = subgraphs.trained(reference, whole, range(30), 10, 3, 1e-2)
    losses, _, parts = hiermt.train_hierarchical(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        None,
        data.WindowLoader(whole, range(30), 10),
        None,
        3,
        progress=False,
        share_days=share_days,
    )
    found = [list(row) for row in zip(losses, parts["signal_loss"], parts["direction_loss"], strict=True)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-8, atol=1e-10)
    for name, weight in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-6, atol=1e-8)


def test_a_loader_of_pyg_gives_the_same(backend: str) -> None:
    pytest.importorskip("torch_geometric")
    whole, found = dataset(), []
    for make in (data.WindowLoader, data.pyg_loader):
        model = two_headed(backend=backend)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        loader = make(whole, range(30), 10, shuffle=True, seed=5)
        found.append(hiermt.train(model, optimizer, TwoHeaded(), loader, None, 2, progress=False).train_losses)
        found.append([hiermt.evaluate(model, TwoHeaded(), make(whole, range(30, 34), 2))["rows"]])
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[2]), rtol=1e-9, atol=0)
    assert found[1] == found[3]


def test_a_mask_of_all_is_no_mask() -> None:
    """The same numbers, up to the rounding of another operator."""
    every = dataset(masked=False)
    none = data.WindowDataset(
        every.series, every.edge_index, every.edge_weight, WINDOW, every.signal_labels, every.direction_labels
    )
    found = []
    for whole in (every, none):
        model = two_headed()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        found.append(
            hiermt.train(model, optimizer, TwoHeaded(), data.WindowLoader(whole, None, 8), None, 2, progress=False)
        )
    torch.testing.assert_close(torch.tensor(found[0].train_losses), torch.tensor(found[1].train_losses))


def rows(dataset: data.WindowDataset, starts: range) -> Tensor:
    """Windows and stocks that count, ``[W, S]``."""
    ends = torch.tensor([start + WINDOW - 1 for start in starts])
    return (dataset.present[:, ends] & dataset.targets["target_mask"][:, ends]).t()


TARGETS: dict[str, Callable[[], Tensor]] = {
    "classes": lambda: torch.randint(3, (STOCKS, DAYS), generator=torch.Generator().manual_seed(1)),
    "real": lambda: torch.randn(STOCKS, DAYS, generator=torch.Generator().manual_seed(1)),
    "horizons": lambda: torch.randn(STOCKS, DAYS, 2, generator=torch.Generator().manual_seed(1)),
    "yes": lambda: torch.randint(2, (STOCKS, DAYS), generator=torch.Generator().manual_seed(1)).float(),
}


def cases() -> list[Any]:
    two = {"label": TARGETS["classes"](), "value": TARGETS["real"]()}
    several = lambda: Several({"label": Classification(3), "value": Regression()})  # noqa: E731
    heads = lambda: hiermt.MultiTaskTGCN(FEATURES, 5, heads={"label": 3, "value": 1})  # noqa: E731
    return [
        pytest.param(
            lambda: hiermt.TGCN(FEATURES, 3, 5), lambda: Classification(3), {"y": TARGETS["classes"]()}, id="K"
        ),
        pytest.param(lambda: hiermt.A3TGCN(FEATURES, 1, 5), Binary, {"y": TARGETS["yes"]()}, id="binary"),
        pytest.param(lambda: hiermt.TGCN(FEATURES, 2, 5), Regression, {"y": TARGETS["horizons"]()}, id="horizons"),
        pytest.param(heads, several, two, id="several"),
        pytest.param(lambda: two_headed(torch.float32), TwoHeaded, {}, id="two-headed"),
    ]


@pytest.mark.parametrize(("network", "task", "targets"), cases())
class TestEveryTask:
    def test_rows_that_do_not_count_may_hold_anything(
        self, network: Callable[[], nn.Module], task: Callable[[], Task], targets: dict[str, Tensor]
    ) -> None:
        """Loss, gradients and scores are those of the same output where all rows count, on these rows alone."""
        torch.manual_seed(3)
        whole, model, of = dataset(torch.float32, **targets), network(), task()
        batch = next(iter(data.WindowLoader(whole, range(30), 30)))
        output = model(batch.windows, batch.graph)
        counts = rows(whole, range(30))

        def selected(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: selected(one) for name, one in value.items()}
            if isinstance(value, tuple):
                return tuple(map(selected, value))
            return value[counts]

        fields = {name: selected(getattr(batch, name)) for name in of.needs}
        alone = SimpleNamespace(**fields)
        for one, other in zip(of.losses(output, batch), of.losses(selected(output), alone), strict=True):
            torch.testing.assert_close(one, other)
        parameters = list(model.parameters())
        for loss in (of(output, batch), of(selected(output), alone)):
            model.zero_grad()
            loss.backward(retain_graph=True)
            alone.grads = [*getattr(alone, "grads", []), [p.grad.clone() for p in parameters if p.grad is not None]]
        for one, other in zip(*alone.grads, strict=True):
            torch.testing.assert_close(one, other)
        for name, count in of.count(output, batch).items():
            torch.testing.assert_close(count, of.count(selected(output), alone)[name])

    @pytest.mark.parametrize(("cut", "patience"), [(1, None), (2, 1)])
    def test_resume_is_bitwise_equal(
        self,
        network: Callable[[], nn.Module],
        task: Callable[[], Task],
        targets: dict[str, Tensor],
        cut: int,
        patience: int | None,
        tmp_path: Path,
    ) -> None:
        whole = dataset(torch.float32, **targets)

        def run(epochs: int, seed: int = 0, **options: Any) -> tuple[Any, dict[str, Tensor]]:
            torch.manual_seed(seed)
            model = network()
            for parameter in model.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)
            train = data.WindowLoader(whole, range(24), 8, shuffle=True, seed=3)
            test = data.WindowLoader(whole, range(28, 34), 4)
            found = hiermt.train(
                model,
                training.adam(model, 1e-2),
                task(),
                train,
                test,
                epochs,
                patience=patience,
                progress=False,
                **options,
            )
            return found, model.state_dict()

        expected, weights = run(4)
        run(cut, checkpoint=tmp_path / "state")
        found, again = run(4, seed=9, checkpoint=tmp_path / "state", resume=True)
        assert found.train_losses == expected.train_losses and found.test_losses == expected.test_losses
        assert all(torch.equal(again[name], weight) for name, weight in weights.items())

    def test_predict_marks_who_is_absent(
        self, network: Callable[[], nn.Module], task: Callable[[], Task], targets: dict[str, Tensor]
    ) -> None:
        torch.manual_seed(3)
        whole, model = dataset(torch.float32, **targets), network()
        loader = data.WindowLoader(whole, range(30), 8)
        there = whole.present[:, torch.arange(30) + WINDOW - 1].t()
        found = hiermt.predict(model, task(), loader)
        for one in found.values():
            rest, gone = one[there], one[~there]
            assert gone.numel() and ((gone == -1) if not one.is_floating_point() else gone.isnan()).all()
            assert rest.isfinite().all() and (one.is_floating_point() or (rest >= 0).all())


def test_scores_of_the_two_headed_task_count_the_rows_that_count() -> None:
    whole, model = dataset(), two_headed()
    scores = hiermt.evaluate(model, TwoHeaded(), data.WindowLoader(whole, range(30), 7))
    counts = rows(whole, range(30))
    assert scores["rows"] == int(counts.sum())
    ends = torch.arange(30) + WINDOW - 1
    actual = data.three_classes(whole.signal_labels[:, ends], whole.direction_labels[:, ends]).t()[counts]
    loader = data.WindowLoader(whole, range(30), 30)
    predicted = hiermt.predict(model, TwoHeaded(), loader)["predictions"][counts]
    assert scores["accuracy"] == pytest.approx(float((predicted == actual).double().mean()))


def test_a_batch_in_which_no_row_counts_trains_nothing() -> None:
    whole = dataset()
    whole.targets["target_mask"].fill_(False)
    model = two_headed()
    before = copy.deepcopy(model.state_dict())
    found = hiermt.train(
        model, torch.optim.SGD(model.parameters(), 0.1), TwoHeaded(), data.WindowLoader(whole), None, 1, progress=False
    )
    assert found.train_losses == [0.0]
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert math.isnan(hiermt.evaluate(model, TwoHeaded(), data.WindowLoader(whole))["accuracy"])


def test_another_criterion_gets_the_rows_that_count() -> None:
    whole, seen = dataset(), []

    def criterion(signal: Tensor, direction: Tensor, *_: Tensor, signal_mask: Tensor, row_mask: Tensor) -> Tensor:
        seen.append(row_mask)
        return ((signal + direction).sum(1) * row_mask).sum()

    model = two_headed()
    loader = data.WindowLoader(whole, range(30), 30)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    hiermt.train_hierarchical(model, optimizer, criterion, loader, None, 1, progress=False)
    assert torch.equal(seen[0], rows(whole, range(30)).flatten())

    def of_all_rows(signal: Tensor, direction: Tensor, *_: Tensor, signal_mask: Tensor) -> Tensor:
        return (signal + direction).sum()

    with pytest.raises(TypeError, match="criterion: the batches have rows that do not count"):
        hiermt.train_hierarchical(model, optimizer, of_all_rows, loader, None, 1, progress=False)


def test_a_model_that_takes_no_mask_is_refused() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(FEATURES, 2)

        def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Any:
            return self.linear(x[:, -1]), self.linear(x[:, -1])

    model = Plain()
    with pytest.raises(TypeError, match="which stocks are present, which a Plain does not take"):
        hiermt.evaluate(model, TwoHeaded(), data.WindowLoader(dataset(torch.float32)))
