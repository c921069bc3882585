"""Tasks: losses and gradients against those of torch, scores against those of sklearn."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hiermt
from hiermt import data
from hiermt.training.tasks import Binary, Classification, Regression, Several, Task, TwoHeaded

ROWS = 60


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, count: int = 3) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(1))


def batch(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


def loss_and_gradient(task: Task, output: Tensor, **fields: Any) -> tuple[Tensor, Tensor]:
    leaf = output.detach().clone().requires_grad_()
    loss = task(leaf, batch(**fields))
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def same(task: Task, output: Tensor, expected: Any, **fields: Any) -> None:
    """Loss and gradient equal those of a function of the output."""
    found = loss_and_gradient(task, output, **fields)
    leaf = output.detach().clone().requires_grad_()
    wanted = expected(leaf)
    torch.testing.assert_close(found[0], wanted.detach())
    torch.testing.assert_close(found[1], torch.autograd.grad(wanted, leaf)[0])


class TestLosses:
    """Against torch's own losses on the rows that count."""

    @pytest.mark.parametrize("weight", [None, [0.5, 2.0, 0.0]])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_cross_entropy(self, weight: list[float] | None, smoothing: float) -> None:
        output, y = made(4, 15, 3).double(), classes(4, 15)
        task = Classification(3, weight=weight, label_smoothing=smoothing)
        own = None if weight is None else torch.tensor(weight).double()
        options: dict[str, Any] = {"weight": own, "label_smoothing": smoothing}
        same(task, output, lambda z: F.cross_entropy(z.reshape(-1, 3), y.reshape(-1), **options), y=y)
        y[0, :9] = -100
        same(task, output, lambda z: F.cross_entropy(z.reshape(-1, 3), y.reshape(-1), **options), y=y)
        mask = made(4, 15) > 0
        kept = mask & (y != -100)
        same(task, output, lambda z: F.cross_entropy(z[kept], y[kept], **options), y=y, target_mask=mask)

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    def test_focal_loss(self, gamma: float) -> None:
        def published(z: Tensor) -> Tensor:
            per_row = F.cross_entropy(z, y, reduction="none")
            return ((1 - (-per_row).exp()) ** gamma * per_row).mean()

        output, y = made(ROWS, 4).double(), classes(ROWS, count=4)
        same(Classification(4, gamma=gamma), output, published, y=y)
        sure = torch.tensor([[200.0, 0.0, 0.0, 0.0]]).double()
        loss, gradient = loss_and_gradient(Classification(4, gamma=gamma), sure, y=torch.tensor([0]))
        assert loss.isfinite() and gradient.isfinite().all()

    @pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1), (4, 15, 1)])
    def test_binary_cross_entropy(self, shape: tuple[int, ...]) -> None:
        output, y = made(*shape).double(), classes(ROWS, count=2)
        targets = y.reshape(shape).double()
        weight = torch.tensor(3.0).double()
        task = Binary(pos_weight=3.0)
        same(task, output, lambda z: F.binary_cross_entropy_with_logits(z, targets, pos_weight=weight), y=y)
        probabilities = output.sigmoid()
        same(Binary(logits=False), probabilities, lambda p: F.binary_cross_entropy(p, targets), y=y)
        missing = y.double()
        missing[::3] = math.nan
        kept = ~missing.isnan()
        same(
            Binary(),
            output,
            lambda z: F.binary_cross_entropy_with_logits(z.reshape(-1)[kept], missing[kept]),
            y=missing,
        )

    def test_binary_focal_loss(self) -> None:
        def published(z: Tensor) -> Tensor:
            per_row = F.binary_cross_entropy_with_logits(z, y.double(), reduction="none")
            return ((1 - (-per_row).exp()) ** 2 * per_row).mean()

        y = classes(ROWS, count=2)
        same(Binary(gamma=2.0), made(ROWS).double(), published, y=y)
        same(Binary(gamma=2.0, logits=False), made(ROWS).double().sigmoid(), lambda p: published(p.logit()), y=y)

    def test_masked_mae_of_the_traffic_literature(self) -> None:
        def published(z: Tensor) -> Tensor:
            """masked_mae of DCRNN: the mask is divided by its mean, and the mean of everything taken."""
            mask = (y != 0).double()
            mask = mask / mask.mean()
            return ((z * 4 + 10 - y).abs() * mask).mean()

        output, y = made(ROWS, 12).double(), made(ROWS, 12, seed=3).double() * 4 + 10
        y[made(ROWS, 12, seed=4) > 0.7] = 0
        same(Regression("mae", null=0.0, shift=10.0, scale=4.0), output, published, y=y)

    @pytest.mark.parametrize(
        ("loss", "function"), [("mae", F.l1_loss), ("mse", F.mse_loss), ("huber", F.smooth_l1_loss)]
    )
    def test_regression(self, loss: str, function: Any) -> None:
        output, y = made(4, 15).double(), made(4, 15, seed=3).double()
        y[0, 3] = math.nan
        mask = torch.tensor([True, True, False, True])
        kept = mask.unsqueeze(1) & ~y.isnan()
        same(Regression(loss), output, lambda z: function(z[kept], y[kept]), y=y, target_mask=mask)

    @pytest.mark.parametrize(
        ("task", "columns", "y"),
        [
            (Classification(3), 3, torch.zeros(ROWS).long()),
            (Binary(), 1, torch.zeros(ROWS)),
            (Regression(), 1, torch.zeros(ROWS)),
        ],
    )
    def test_rows_that_do_not_count_may_hold_anything(self, task: Task, columns: int, y: Tensor) -> None:
        output = made(ROWS, columns)
        output[:20] = math.nan
        output[20:30] = math.inf
        mask = torch.arange(ROWS) >= 30
        loss, gradient = loss_and_gradient(task, output, y=y, target_mask=mask)
        assert loss.isfinite() and gradient.isfinite().all() and not gradient[:30].any() and gradient[30:].any()
        loss, gradient = loss_and_gradient(task, output, y=y, target_mask=mask & False)
        assert loss == 0 and not gradient.any()

    def test_sixteen_bits_are_computed_in_float32(self) -> None:
        output, y = made(ROWS, 3).bfloat16(), classes(ROWS)
        loss, gradient = loss_and_gradient(Classification(3), output, y=y)
        assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
        torch.testing.assert_close(loss, F.cross_entropy(output.float(), y))

    def test_the_average_over_processes_is_the_loss_of_the_whole_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        output, y = made(ROWS, 3).double(), classes(ROWS)
        y[:17] = -100
        parts = [slice(0, 25), slice(25, ROWS)]
        weight = torch.tensor([0.5, 2.0, 1.0]).double()
        whole = weight[y[y >= 0]].sum()
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda norm, group: norm.copy_(whole))
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
        task = Classification(3, weight=weight, process_group="both")
        found = [loss_and_gradient(task, output[part], y=y[part]) for part in parts]
        expected = loss_and_gradient(Classification(3, weight=weight), output, y=y)
        torch.testing.assert_close((found[0][0] + found[1][0]) / 2, expected[0])
        torch.testing.assert_close(torch.cat([found[0][1], found[1][1]]) / 2, expected[1])
        assert not task.capturable

    def test_several_heads(self) -> None:
        output = {"trend": made(ROWS, 3), "return": made(ROWS, 1), "jump": made(ROWS)}
        targets = {"trend": classes(ROWS), "return": made(ROWS, seed=5), "jump": classes(ROWS, count=2)}
        task = Several({"trend": Classification(3), "return": Regression("mse"), "jump": Binary()}, {"return": 0.5})
        total, *parts = task.losses(output, batch(**targets))
        assert task.parts == ("total_loss", "trend_loss", "return_loss", "jump_loss") and task.needs == tuple(targets)
        torch.testing.assert_close(parts[0], F.cross_entropy(output["trend"], targets["trend"]))
        torch.testing.assert_close(parts[1], F.mse_loss(output["return"][:, 0], targets["return"]))
        torch.testing.assert_close(total, parts[0] + 0.5 * parts[1] + parts[2])
        assert set(task.decide(output)) >= {"trend_predictions", "trend_probabilities", "return_predictions"}
        assert (
            task.score({k: v.tolist() for k, v in task.count(output, batch(**targets)).items()})["trend_rows"] == ROWS
        )


class TestScores:
    """Against sklearn, over several batches."""

    @staticmethod
    def scores(task: Task, outputs: list[Any], batches: list[Any]) -> dict[str, float]:
        class Replay(nn.Module):
            def forward(self, x: Tensor, *_: Any) -> Any:
                return outputs[int(x[0, 0])]

        loader = []
        for i, one in enumerate(batches):
            one.x, one.edge_index = torch.full((1, 1), float(i)), torch.zeros(2, 0, dtype=torch.int64)
            one.to = lambda _, one=one: one
            loader.append(one)
        return hiermt.evaluate(Replay(), task, loader)

    def test_classification(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        outputs = [made(ROWS, 4, seed=i) for i in range(3)]
        labels = [torch.randint(3, (ROWS,), generator=torch.Generator().manual_seed(i)) for i in range(3)]
        found = self.scores(Classification(4), outputs, [batch(y=y) for y in labels])
        y, predicted = torch.cat(labels), torch.cat(outputs).argmax(-1)
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, predicted))
        assert found["macro_f1"] == pytest.approx(metrics.f1_score(y, predicted, average="macro"))
        with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
            assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, predicted))
        table = metrics.confusion_matrix(y, predicted, labels=range(4))
        assert [[found[f"confusion_{i}_{j}"] for j in range(4)] for i in range(4)] == table.tolist()
        assert found["total_loss"] == pytest.approx(
            np.mean([float(F.cross_entropy(z, t)) for z, t in zip(outputs, labels, strict=True)])
        )

    def test_binary(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        outputs = [made(ROWS, seed=i) for i in range(2)]
        labels = [classes(ROWS, count=2), 1 - classes(ROWS, count=2)]
        found = self.scores(Binary(threshold=0.6), outputs, [batch(y=y) for y in labels])
        y, predicted = torch.cat(labels), torch.cat(outputs).sigmoid() > 0.6
        for name in ("accuracy", "precision", "recall", "f1"):
            assert found[name] == pytest.approx(getattr(metrics, f"{name}_score")(y, predicted))

    def test_regression_by_horizon(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        outputs, labels = [made(ROWS, 2, seed=i) for i in range(2)], [made(ROWS, 2, seed=9 + i) for i in range(2)]
        found = self.scores(Regression("mse"), outputs, [batch(y=y) for y in labels])
        y, predicted = torch.cat(labels), torch.cat(outputs)
        assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, predicted))
        for k in range(2):
            pair = y[:, k], predicted[:, k]
            assert found[f"mae_{k + 1}"] == pytest.approx(metrics.mean_absolute_error(*pair))
            assert found[f"rmse_{k + 1}"] == pytest.approx(metrics.root_mean_squared_error(*pair))
            assert found[f"mape_{k + 1}"] == pytest.approx(metrics.mean_absolute_percentage_error(*pair))

    def test_two_headed(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        signal, direction = made(ROWS, 2), made(ROWS, 2, seed=1)
        labels = {"signal_labels": classes(ROWS, count=2), "direction_labels": 1 - classes(ROWS, count=2)}
        found = self.scores(TwoHeaded(), [(signal, direction)], [batch(**labels)])
        actual = data.three_classes(*labels.values())
        predicted = hiermt.hierarchical_inference(signal, direction)["final_predictions"]
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(actual, predicted))
        there = labels["signal_labels"] == 1
        assert found["signal_accuracy"] == pytest.approx(metrics.accuracy_score(there, signal.argmax(-1)))
        expected = metrics.accuracy_score(labels["direction_labels"][there], direction.argmax(-1)[there])
        assert found["direction_accuracy"] == pytest.approx(expected)

    def test_nothing_counts(self) -> None:
        for task, columns in ((Classification(3), 3), (Binary(), 1), (Regression(), 1)):
            y = torch.zeros(ROWS).long() if columns == 3 else torch.zeros(ROWS)
            found = self.scores(task, [made(ROWS, columns)], [batch(y=y, target_mask=torch.zeros(ROWS).bool())])
            assert found.pop("total_loss") == 0 and found.pop("rows") == 0
            assert all(math.isnan(value) or value == 0 for value in found.values())


class TestRefusals:
    @pytest.mark.parametrize(
        ("task", "output", "fields", "error", "message"),
        [
            (
                Classification(3),
                made(4, 2),
                {"y": classes(4)},
                ValueError,
                r"logits \[\*, 3\], got torch.float32 \[4, 2\]",
            ),
            (Classification(3), (made(4, 2), made(4, 2)), {"y": classes(4)}, ValueError, "got 2 outputs"),
            (Classification(3), made(4, 3), {}, ValueError, "a batch has no y, which Classification needs"),
            (Classification(3), made(4, 3), {"y": classes(5)}, ValueError, "a class for each of 4 rows in y"),
            (
                Classification(3),
                made(4, 3),
                {"y": made(4)},
                TypeError,
                "y: expected integer classes, got torch.float32",
            ),
            (Classification(3), made(4, 3), {"y": classes(4) + 2}, ValueError, r"classes in \[0, 3\), got [34]"),
            (Classification(3), made(4, 3), {"y": [0, 1, 2, 0]}, TypeError, "y: expected a Tensor, got list"),
            (Classification(3), made(4, 3), {"y": classes(4), "target_mask": torch.ones(3)}, ValueError, "target_mask"),
            (Binary(), made(4, 2), {"y": classes(4)}, ValueError, "one target for each of 8 outputs"),
            (Binary(), made(4), {"y": classes(4) + 1}, ValueError, "targets of 0 and 1"),
            (
                Binary(logits=False),
                made(4) + 3,
                {"y": classes(4, count=2)},
                ValueError,
                "probabilities, as logits=False",
            ),
            (Regression(), made(4, 3), {"y": made(4)}, ValueError, r"as many targets in y as outputs, \[4, 3\]"),
            (Regression(), (made(4), made(4)), {"y": made(4)}, ValueError, "one Tensor of numbers, got tuple"),
            (TwoHeaded(), made(4, 2), {}, ValueError, r"signal and direction logits, \[\*, 2\] each, got \[4, 2\]"),
            (Several({"a": Binary()}), made(4), {}, ValueError, "a mapping with the outputs of a, got a Tensor"),
            (Several({"a": Binary()}), {"b": made(4)}, {}, ValueError, "an output for the head 'a', got outputs for b"),
        ],
    )
    def test_output_and_targets(self, task: Task, output: Any, fields: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            task.losses(output, batch(**fields))

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: Classification(1), ValueError, "num_classes"),
            (lambda: Classification(3, weight=[1.0, 2.0]), ValueError, "expected 3 weights"),
            (lambda: Classification(3, weight=[1.0, 2.0, -1.0]), ValueError, r"weight\[2\]"),
            (lambda: Classification(3, label_smoothing=2.0), ValueError, "label_smoothing"),
            (lambda: Binary(pos_weight=-1.0), ValueError, "pos_weight"),
            (lambda: Regression("mape"), ValueError, "loss: expected one of 'mae', 'mse', 'huber'"),
            (lambda: Several({}), ValueError, "tasks: expected a mapping"),
            (lambda: Several({"a": "x"}), TypeError, r"tasks\['a'\]: expected a Task, got str"),
            (lambda: Several({"a": TwoHeaded()}), TypeError, "a task of one loss"),
            (lambda: Several({"a": Binary()}, {"b": 1.0}), ValueError, "there is no task 'b'"),
        ],
    )
    def test_options(self, make: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            make()


def test_two_heads_by_name() -> None:
    """The output of a MultiTaskTGCN is the pair of a TGCN_HierarchicalMT."""
    signal, direction = made(10, 2), made(10, 2, seed=2)
    labels = {"signal_labels": classes(10, count=2), "direction_labels": classes(10, count=2)}
    task = TwoHeaded()
    pair, named = (signal, direction), {"direction": direction, "signal": signal, "regime": made(10, 3)}
    for one, other in zip(task.losses(pair, batch(**labels)), task.losses(named, batch(**labels)), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(task.decide(pair)["predictions"], task.decide(named)["predictions"])
    with pytest.raises(ValueError, match="expects signal and direction logits"):
        task.decide({"signal": signal})
